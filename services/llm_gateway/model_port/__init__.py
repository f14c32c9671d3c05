"""The OpenAI-compatible HTTP port, for products that want only models."""
