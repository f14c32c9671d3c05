"""What callers ask of runs at work: to end, to stop generating, to go on without a tool call, to hear a message."""
