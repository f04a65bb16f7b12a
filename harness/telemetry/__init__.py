"""The machine and the engine, sampled beside a run. A sampler that fails leaves a note and never hurts the run."""
