"""What `python -m evals.gpu` measures on one GPU: kernels against oracles, their speed, decoding, peers, a small grid."""
