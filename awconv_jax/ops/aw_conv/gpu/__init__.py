"""Kernels of AW-convolution for GPU, in Pallas for Triton."""
