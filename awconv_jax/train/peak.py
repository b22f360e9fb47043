"""What share of its devices' arithmetic a run uses.

The model FLOP/s utilization of PaLM (https://arxiv.org/abs/2204.02311, appendix
B) counts what the forward and the backward pass of the model need, whatever is
computed beyond that.
"""

# Dense products in bfloat16 [FLOP/s per device], by a part of its device_kind,
# the first that fits: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e;
# NVIDIA's data sheets of the A100, H100, H200 and Blackwell (HGX B200).
_PEAKS = {
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v6': 918e12,
    'A100': 312e12,
    'H100 PCIe': 756e12,
    'H100 NVL': 835e12,
    'H200 NVL': 835e12,
    'H100': 989e12,
    'H200': 989e12,
    'B200': 2250e12,
}


def flops(device_kind: str) -> float | None:
  """Returns the most that a device of this kind does [FLOP/s], if known."""
  found = (peak for part, peak in _PEAKS.items() if part in device_kind)
  return next(found, None)


def utilization(
    images_per_second: float, macs: int, device_kind: str, devices: int
) -> float | None:
  """Returns the share of the peak that training uses; None if it is not known.

  Args:
    images_per_second: of all devices.
    macs: multiply-adds of the forward pass of one image; the backward pass is
      twice that.
    device_kind: as JAX calls it.
    devices: how many there are.
  """
  most = flops(device_kind)
  return most and images_per_second * 3 * 2 * macs / (most * devices)
