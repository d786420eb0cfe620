"""The operations for CPU tensors: C++ in `src/`, built by `build`, called through `call`, one module per operation."""
