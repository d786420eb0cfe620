"""What the papers claim, the evidence, and the ruling."""
