"""What a file says of its network beside the arrays, whose shapes tell most.

Strides, pooling, activations and epsilons have no arrays, so that the weights
of one network fit into others that compute something else. Where names give it
away, the file is refused; see docs/weights.md for what nothing tells.
"""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

import numpy as np

from awconv_jax.errors import InputError, quoted

# Of names of networks, and of what timm says of them: what is in no network
# here, though all arrays may fit.
ELSEWHERE = {
    r'res(net|next)(blur|aa)|antialias|^aa_layer=': 'anti-aliased downsampling',
    r'legacy_seresnet(18|34)': 'a ReLU between the last norm and SE',
    r'\bceca_?res': 'circular channel attention',
    r'\btf_mobilenet': "TensorFlow's padding",
    r'^global_pool=(?!avg)': 'another pooling before the head',
    r'^act_layer=': 'another activation',
    r'^(output_stride|replace_stem_pool|norm_layer|block_args)=': (
        'other layers'
    ),
    r'-\d{5}-of-\d{5}': 'more arrays, in other files; join them into one',
}
# Options without arrays; those of AW-convolutions are in `aw_options`.
UNTOLD = 'stem', 'version', 'norm_epsilon'
UNTOLD_OF_AW = 'gate', 'residual', 'pool_size', 'expansion_axis', 'norm_epsilon'
# Where `weights.save` keeps them in a file.
KEY = 'awconv_jax'


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


def _beside(path: pathlib.Path) -> list[str]:
  """Returns what timm wrote to a config.json beside a file."""
  try:
    said = json.loads((path.parent / 'config.json').read_text())
  except (OSError, ValueError, RecursionError):
    return []
  if not isinstance(said, dict) or 'architecture' not in said:
    return []
  pool = f'global_pool={said.get("global_pool", "avg")}'
  changed = said.get('model_args')
  changed = changed if isinstance(changed, dict) else {}
  return [str(said['architecture']), pool, *(f'{k}=' for k in changed)]


def check(
    path: pathlib.Path,
    said: Mapping[str, Any],
    arrays: Mapping[str, Any],
    network: Any,
) -> None:
  """Raises InputError where names tell that a file is of another network.

  Args:
    path: of the file.
    said: in it, besides the arrays; see `untold` and `torch_file.NETWORK`.
    arrays: by the names in the file.
    network: the network, or its options; None if it is not known.
  """
  own = path.name if 'net' in path.name else '/'.join(path.parts[-4:])
  names = [own, *(text for key, text in said.items() if key != KEY)]
  names = [text.lower() for text in (*names, *_beside(path))]
  names += ['antialias'] * any(name.endswith('.filt') for name in arrays)
  # Groups are of ResNeXt, which strides in the 3x3.
  inner = arrays.get('layer1.0.conv2.weight', np.zeros((0, 1)))
  v1 = inner.shape[0] == inner.shape[1] and 'layer1.0.conv3.weight' in arrays
  if any(name.startswith('layer0.') for name in arrays):
    basic = 'layer1.0.conv3.weight' not in arrays
    names += ['legacy_seresnet18'] * basic
    told = dict(stem='imagenet_ceil') | (dict(version='v1') if v1 else {})
    compare(path, told, "its arrays 'layer0...'", network)
  for name in names:
    for pattern, what in ELSEWHERE.items():
      if re.search(pattern, name):
        raise InputError(
            f'{path} is of a network with {what}, by {quoted(name)}, which '
            'the networks here have not; rename it if it is of another'
        )
    if v1 and re.search(r'(?<![a-z])(caffe|msra)(?![a-z])', name):
      compare(path, dict(version='v1'), repr(name), network)
    if 'fasterrcnn_resnet50_fpn_coco' in name:
      compare(path, dict(norm_epsilon=0.0), repr(name), network)
  if KEY in said:
    compare(path, said[KEY], 'what is written in it', network)
