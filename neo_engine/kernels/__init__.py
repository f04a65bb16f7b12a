"""Device kernels in plain torch. Decode attention over paged KV belongs to pacpu on a CPU-only machine."""
