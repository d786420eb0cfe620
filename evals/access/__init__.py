"""Bytes and rows that a decoding step reads: by formula, counted, by the GPU."""
