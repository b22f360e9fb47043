"""Evaluators: exact metrics on the host, in numpy, over masked batches."""
