"""How long a decoding step takes: measured, and by the roofline."""
