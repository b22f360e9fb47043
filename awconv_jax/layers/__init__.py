"""Flax (Linen) layers, one paper a file."""
