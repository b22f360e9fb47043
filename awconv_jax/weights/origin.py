"""What a file says of its network beside the arrays, whose shapes tell most.

Strides, pooling, activations and epsilons have no arrays, so that the weights
of one network fit into others that compute something else. Where names give it
away, the file is refused; see docs/weights.md for what nothing tells.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
from typing import Any

import numpy as np

from awconv_jax.errors import InputError, quoted

# Of names of networks and files, and of options of timm's: what is not of any
# network here, though all arrays may fit.
ELSEWHERE = (
    r'res(net|next)(blur|aa)|(net|next)\d+[-_]?(blur|lpf)|anti[-_]?alias'
    r'|(?<![a-z])blur[-_]?(pool|res)',
    r'legacy_seresnet(18|34)',  # A ReLU between the last norm and SE.
    r'res(net|next)\d+[cdst](?![a-z0-9])',  # Other stems and shortcuts.
    r'leaky|(net|next)\d+[-_]?(elu|gelu|mish|silu|swish)|^act_layer=(?!relu)',
    r'^(aa_layer|avg_down|block_args|norm_layer|output_stride)=',
    r'^(replace_stem_pool=|bn_eps=(?!1e-05)|global_pool=(?!avg))',
)
# Where scripts and timm keep names of networks, and options.
NAMES = 'arch', 'architecture', 'model', 'model_name'
OPTIONS = 'model_args', 'model_kwargs'
# Options without arrays; those of AW-convolutions are in `aw_options`.
UNTOLD = 'stem', 'version', 'norm_epsilon'
UNTOLD_OF_AW = 'gate', 'residual', 'pool_size', 'expansion_axis', 'norm_epsilon'


def untold(network: Any) -> dict[str, Any]:
  """Returns the options without arrays of a network or detector, or a config.

  Those of AW-convolutions are what `aw_options` holds: all in a whole config.
  """
  network = getattr(network, 'backbone', network)
  found = {k: getattr(network, k) for k in UNTOLD if hasattr(network, k)}
  if getattr(network, 'aw_conv', False):
    given = network.aw_options or {}
    found |= {f'aw_options.{k}': given[k] for k in UNTOLD_OF_AW if k in given}
  # As they come back from a file.
  return {k: [*v] if isinstance(v, tuple) else v for k, v in found.items()}


def compare(
    source: object, told: Mapping[str, Any], by: str, network: Any
) -> None:
  """Raises InputError if a network has not the options that weights are for."""
  for option, value in untold(network).items():
    if told.get(option, value) != value:
      raise InputError(
          f'{source} is for {option}={told[option]!r}, by {by}; give the '
          f'network that value in place of {value!r}'
      )


def _hints(path: pathlib.Path, said: Sequence[Any]) -> list[str]:
  """Returns names of networks, and 'name=value' of what was changed of them."""
  found = [part for part in path.parts[-4:] if re.search('ne[tx]', part)]
  if path.name in found:  # Of model.safetensors, a folder tells.
    found = [path.name]
  try:  # Where timm describes the file beside it.
    beside = json.loads((path.parent / 'config.json').read_text())
  except (OSError, ValueError, RecursionError):
    beside = None
  for part in (*said, beside):
    if isinstance(part, Mapping):
      found += [v for k in NAMES if isinstance(v := part.get(k), str)]
      options = {k: part.get(k) for k in ('global_pool', 'bn_eps')}
      for key in OPTIONS:
        options |= given if isinstance(given := part.get(key), dict) else {}
      for name, value in options.items():
        # Trees of a pickle could take for ever to be written.
        shown = value if isinstance(value, str | float) else ''
        found += [f'{name}={shown}'] * bool(value)
  return [text[:200].lower() for text in found]


def check(
    path: pathlib.Path,
    said: Sequence[Any],
    told: Mapping[str, Any],
    arrays: Mapping[str, Any],
    network: Any,
) -> None:
  """Raises InputError where names tell that a file is of another network.

  Args:
    path: of the file.
    said: dicts in it besides the arrays, of whatever else.
    told: what `weights.save` wrote there, of `untold`.
    arrays: by the names in the file.
    network: the network, or its options; None if it is not known.
  """
  names = _hints(path, said)
  # Groups are of ResNeXt, which strides in the 3x3.
  inner = arrays.get('layer1.0.conv2.weight', np.zeros((0, 1)))
  v1 = inner.shape[0] == inner.shape[1] and 'layer1.0.conv3.weight' in arrays
  if any(name.startswith('layer0.') for name in arrays):
    basic = 'layer1.0.conv3.weight' not in arrays
    names += ['legacy_seresnet18'] * basic
    caffe = dict(stem='imagenet_ceil') | (dict(version='v1') if v1 else {})
    compare(path, caffe, "its arrays 'layer0...'", network)
  for name in names:
    if re.search('|'.join(ELSEWHERE), name):
      raise InputError(
          f'{path} is of a network that is not here, by {quoted(name)}, though '
          'its arrays may fit; rename what says so if it is wrong'
      )
    if v1 and re.search(r'(?<![a-z])(caffe|msra)(?![a-z])', name):
      compare(path, dict(version='v1'), repr(name), network)
    if 'fasterrcnn_resnet50_fpn_coco' in name:
      compare(path, dict(norm_epsilon=0.0), repr(name), network)
  compare(path, told, 'what is written in it', network)
