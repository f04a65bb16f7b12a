"""NEO: an LLM inference engine whose KV cache and decode attention are split between a device and the host CPU."""
