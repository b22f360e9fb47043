"""What share of its devices' arithmetic a run uses.

The model FLOP/s utilization of PaLM (https://arxiv.org/abs/2204.02311, appendix
B) counts what the forward and the backward pass of the model need, whatever is
computed beyond that.
"""

import re

# Dense products in bfloat16 [FLOP/s per device], by what the whole device_kind
# has to match: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e; NVIDIA's
# data sheets of the A100, H100, H200 and Blackwell (HGX B200).
_PEAKS = {
    'TPU v4': 275e12,
    'TPU v5 lite|TPU v5e': 197e12,
    'TPU v5p?': 459e12,
    'TPU v6 lite|TPU v6e': 918e12,
    'NVIDIA A100[- ](SXM4?-|PCIE-)?(40|80)GB( PCIe)?': 312e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA (H100|H200) NVL': 835e12,
    'NVIDIA H100( 80GB HBM3)?|NVIDIA H200': 989e12,
    'NVIDIA B200': 2250e12,
}


def flops(device_kind: str) -> float | None:
  """Returns the most that a device of this kind does [FLOP/s], if known."""
  found = (peak for k, peak in _PEAKS.items() if re.fullmatch(k, device_kind))
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
