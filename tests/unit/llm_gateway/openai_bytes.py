"""What a provider sends in OpenAI's form, of an answer that used 5 and 2 tokens."""

USAGE = b'"usage":{"prompt_tokens":5,"completion_tokens":2}'
ANSWER = b'{"id":"r","model":"m","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],' + USAGE + b"}"
# Pieces of a stream: a text to fill in, and the end.
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],' + USAGE + b"}\n\ndata: [DONE]\n\n"
