"""What reaches outside: providers over HTTP, and embedding models that run in this process."""
