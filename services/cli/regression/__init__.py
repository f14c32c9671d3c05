"""Threads as regression tests: what a test file says, how a recorded thread becomes one, and how one is run against an agent."""
