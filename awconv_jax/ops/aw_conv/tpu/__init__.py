"""The fused AW-convolution's kernels for TPU, in Pallas for Mosaic."""
