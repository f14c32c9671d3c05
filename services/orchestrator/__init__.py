"""Turns durable: threads, runs, their event log and the agent loop."""
