"""Measures the operation and whole networks against their plain versions."""

import awconv_jax as awconv_jax  # Now, so that it minds interrupts.
