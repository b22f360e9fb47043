"""What a trained network looks at: attention maps, kernels, and Grad-CAM.

  model = awconv_jax.load('digits')
  maps = explain.attention_maps(model, ['photo.jpg'])  # By layer.
  seen = explain.grad_cam(model, 'photo.jpg')  # [H, W], in its pixels.

`draw` has the figures of them.
"""

from awconv_jax.explain.by_class import ByClass, maps_by_class
from awconv_jax.explain.cam import (
    Cam,
    NothingFound,
    class_activation,
    grad_cam,
)
from awconv_jax.explain.maps import (
    KernelNorms,
    Layer,
    attention_maps,
    kernel_norms,
    layers,
    streamed,
    together,
)

__all__ = [
    'ByClass',
    'Cam',
    'KernelNorms',
    'Layer',
    'NothingFound',
    'attention_maps',
    'class_activation',
    'grad_cam',
    'kernel_norms',
    'layers',
    'maps_by_class',
    'streamed',
    'together',
]
