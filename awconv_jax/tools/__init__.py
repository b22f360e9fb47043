"""Command-line tools: python -m awconv_jax.tools.<name> --help."""
