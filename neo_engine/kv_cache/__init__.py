"""Who owns which KV block of which tier. Pure integers; the memory itself belongs to the executor."""
