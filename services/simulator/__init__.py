"""A model server in the dialects of OpenAI, Anthropic and Gemini that follows rules instead of a model.

It stands where a provider would stand, for development, tests and load. It therefore shares no type
with the other services: what it logs as served and billed is a second opinion, not an echo of ours.
"""
