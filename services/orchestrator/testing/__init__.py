"""For tests only: what stands in for the services behind the orchestrator, and the orchestrator among them."""
