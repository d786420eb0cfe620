"""The operations for CUDA tensors: Triton kernels, one module per operation; `launch` starts them, `tune` picks settings."""
