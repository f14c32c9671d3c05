"""Proto to domain and back, a service a file."""
