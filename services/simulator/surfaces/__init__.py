"""The HTTP surfaces: OpenAI's API, and the control endpoints under /sim."""
