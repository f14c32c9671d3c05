"""The HTTP entry for products: authentication, admission, and one projection of the event log for each API."""
