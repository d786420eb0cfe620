"""Synthetic memory tasks: their generators, their share of the training stream, and what is asked of a trained model.

The suites behind P2 table 9 (long context) are private and described there by one line each; these are SYNTHETIC
ANALOGUES and their scores are not comparable to the paper's. What
`items.py` asks is no part of the training data: an edit of it prepares and trains nothing again.
"""
