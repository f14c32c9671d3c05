"""Webhooks: ends of runs told to endpoints of their tenant, as the Standard Webhooks specification says."""
