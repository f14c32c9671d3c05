"""What lies outside: the state store and the services that a turn calls."""
