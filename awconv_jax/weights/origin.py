"""What a file says of its network beside the arrays, whose shapes tell most.

Strides, pooling, activations and epsilons have no arrays, so that the weights
of one network fit into others that compute something else. Where names give it
away, the file is refused; see docs/weights.md for what nothing tells.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
import re
from typing import Any

import numpy as np

from awconv_jax.errors import InputError

# Of names of networks, and of what timm says of them: what is in no network
# here, though all arrays may fit.
ELSEWHERE = {
    r'res(net|next)(blur|aa)|antialias|aa_layer': 'anti-aliased downsampling',
    r'\bceca': 'circular channel attention',
    r'\btf_': "TensorFlow's padding",
    r'global_pool=(?!avg)': 'another pooling before the head',
    r'act_layer': 'another activation',
    r'output_stride|replace_stem_pool|norm_layer|block_args': 'another layout',
    r'-\d{5}-of-\d{5}': 'only a part of the arrays; join the files into one',
}


def _beside(path: pathlib.Path) -> list[str]:
  """Returns what timm wrote to a config.json beside a file."""
  try:
    said = json.loads((path.parent / 'config.json').read_text())
  except (OSError, ValueError, RecursionError):
    return []
  if not isinstance(said, dict) or 'architecture' not in said:
    return []
  changed = said.get('model_args')
  changed = changed if isinstance(changed, dict) else {}
  pool = f'global_pool={said.get("global_pool", "avg")}'
  return [str(said['architecture']), pool, *(f'{k}=' for k in changed)]


def needed(
    hints: Iterable[str], arrays: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
  """Returns options that weights are for by their names, and which those are.

  Args:
    hints: names of the file, or of the network, in it.
    arrays: by the names in the file.
  """
  found = {}
  # Groups are of ResNeXt, which strides in the 3x3.
  inner = arrays.get('layer1.0.conv2.weight', np.zeros((0, 1)))
  v1 = inner.shape[0] == inner.shape[1] and 'layer1.0.conv3.weight' in arrays
  if any(name.startswith('layer0.') for name in arrays):
    found['stem'] = 'imagenet_ceil', 'layer0'
    if v1:
      found['version'] = 'v1', 'layer0'
  for hint in hints:
    if v1 and re.search(r'(?<![a-z])(caffe|msra)(?![a-z])', hint):
      found['version'] = 'v1', hint
    if re.search(r'fasterrcnn_resnet50_fpn_coco', hint):
      found['norm_epsilon'] = 0.0, hint
  return found


def check(
    path: pathlib.Path,
    hints: Sequence[str],
    arrays: Mapping[str, Any],
    network: Any,
) -> None:
  """Raises InputError where names tell that a file is of another network.

  Args:
    path: of the file.
    hints: names of networks that are in it.
    arrays: by the names in the file.
    network: the network, or its options; a detector has it as its backbone.
      None if it is not known.
  """
  own = path.name if 'net' in path.name else '/'.join(path.parts[-4:])
  hints = [hint.lower() for hint in (own, *hints, *_beside(path))]
  for hint in hints:
    for pattern, what in ELSEWHERE.items():
      if re.search(pattern, hint):
        raise InputError(
            f'{path} is of a network with {what}, by {hint!r}, which the '
            'networks here have not; rename it if that says something else'
        )
  network = getattr(network, 'backbone', network)
  for option, (value, hint) in needed(hints, arrays).items():
    if getattr(network, option, value) != value:
      raise InputError(
          f'{path} is for {option}={value!r}, by {hint!r}, and the network has '
          f'{getattr(network, option)!r}; give it that {option}'
      )
