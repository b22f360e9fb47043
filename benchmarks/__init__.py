"""Measures the operation and whole networks against their plain versions."""
