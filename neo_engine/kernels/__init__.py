"""Device kernels: plain torch, and Triton beside it for CUDA tensors. Importing any but triton_*.py needs no triton.

Decode attention over paged KV on a CPU-only machine belongs to pacpu.
"""
