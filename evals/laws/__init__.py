"""Scaling laws of losses, with intervals, under every rule of counting, and gains as compute and as time."""
