"""Tools: a versioned registry, and calls that are validated, bounded and never repeated by accident."""
