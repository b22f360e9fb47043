"""Training: the loop, its step, and what they stand on."""
