"""Hooks: signed messages of others' systems, each of which starts a run of an agent of the tenant, once."""
