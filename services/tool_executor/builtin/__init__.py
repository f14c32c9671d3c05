"""The tools that come with Bulkhead, one module each."""
