"""Model calls: one registry, one attempt loop, exact usage; over gRPC and over an OpenAI-compatible HTTP port."""
