"""gRPC services of the LLM gateway beside LlmService."""
