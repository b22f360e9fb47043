"""Our parameters under torch's names: one table for all networks.

The names of blocks and norms are those of torchvision's and timm's ResNets, and
those of detectors torchvision's; what those do not have keeps our name. How an
array changes follows from its leaf's name alone, so that new layers need no
entry:

  ours                                           torch
  params/.../kernel  [*window, C, D]             ....weight [D, C, *window]
  params/.../scale, bias                         ....weight, bias
  batch_stats/.../mean, var                      ....running_mean, running_var
  params/stage1_block1/conv2/kernel              layer1.0.conv2.weight
  params/stage1_block1/conv2/attention/norm1/... layer1.0.conv2.attention.norm1.
  params/box_head/fc6/kernel  [P, P, C, D]       roi_heads.box_head.fc6.weight
                                                 [D, C * P * P]
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from flax import traverse_util
import numpy as np

from awconv_jax.errors import one_line

LEAVES = dict(
    kernel='weight', scale='weight', mean='running_mean', var='running_var'
)
# Names of modules.
MODULES = {
    'stem_conv': 'conv1',
    'stem_norm': 'bn1',
    'head': 'fc',
    'downsample_conv': 'downsample.0',
    'downsample_norm': 'downsample.1',
    'backbone': 'backbone.body',
    'fpn': 'backbone.fpn',
    'rpn': 'rpn.head',
    'shared_conv': 'conv.0.0',
    'box_head': 'roi_heads.box_head',
    'box_predictor': 'roi_heads.box_predictor',
}
# Patterns of those with numbers; blocks and levels count from 0 there.
NUMBERED = {
    r'stage(\d+)_block(\d+)': lambda m: f'layer{m[1]}.{int(m[2]) - 1}',
    r'norm(\d+)': lambda m: f'bn{m[1]}',
    r'lateral(\d+)': lambda m: f'inner_blocks.{int(m[1]) - 2}.0',
    r'output(\d+)': lambda m: f'layer_blocks.{int(m[1]) - 2}.0',
}
# Dense layers over a window, which torch flattens with the channels first.
FLAT = ('fc6',)
# What torchvision called the modules of a detector before its version 0.14; the
# weights that it publishes still have these names. Then timm's of `legacy_*`,
# and those of ECA's authors.
FORMER = {
    r'(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)': r'\1.0.\2',
    r'rpn\.head\.conv\.(weight|bias)': r'rpn.head.conv.0.0.\1',
    r'layer0\.((?:conv|bn)1\..*)': r'\1',
    r'(layer\d\.\d+)\.(?:se_module|eca)\.(.*)': r'\1.se.\2',
    r'last_linear\.(weight|bias)': r'fc.\1',
}
# Of DataParallel, of compiled models, and of what trains a model.
PREFIXES = ('module.', '_orig_mod.', 'model.')
# Beside the arrays of averages, counts what went into them.
AVERAGED = 'n_averaged'
# What a network for classification has beyond a backbone.
HEADS = ('fc.', 'last_conv.', 'last_norm.')
# Attention modules that timm has (SE, ECA), told by what they hold. Its layers
# are 1x1 convolutions where ours are matrices.
ATTENTION = {
    frozenset({'reduce', 'expand'}): {'reduce': 'se.fc1', 'expand': 'se.fc2'},
    frozenset({'conv'}): {'conv': 'se.conv'},
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array here and in torch.

  Attributes:
    path: in the tree of our variables.
    axes, transposed: axes of ours in torch's order, and their sizes.
    shape: in torch; ends with ones where it has a 1x1 convolution and we a
      matrix, and is flat where it has a matrix and we a window.
  """

  path: tuple[str, ...]
  axes: tuple[int, ...]
  transposed: tuple[int, ...]
  shape: tuple[int, ...]

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Returns our array in torch's layout, contiguous."""
    array = np.transpose(array, self.axes).reshape(self.shape)
    return np.asarray(array, order='C')

  def from_torch(self, array: np.ndarray) -> np.ndarray:
    """Returns torch's array [*shape] in our layout."""
    array = array.reshape(self.transposed)
    return np.transpose(array, np.argsort(self.axes))


def _of_mobile_net() -> dict[str, str]:
  """Returns the names here of MobileNetV2's modules, by torchvision's, timm's.

  They are those of a ResNet's blocks, of which the first widens nothing.
  """
  rows = ['conv1 features.0.0 conv_stem', 'bn1 features.0.1 bn1']
  rows += ['last_conv features.18.0 conv_head', 'last_norm features.18.1 bn2']
  rows += ['fc classifier.1 classifier']
  stages = enumerate((1, 2, 3, 4, 3, 3, 1))
  places = [(stage, block) for stage, n in stages for block in range(n)]
  for index, (stage, block) in enumerate(places, start=1):
    slots = ['conv1 0.0 conv_pw', 'bn1 0.1 bn1', 'conv2 1.0 conv_dw']
    slots += ['bn2 1.1 bn2', 'conv3 2 conv_pwl', 'bn3 3 bn3']
    if index == 1:
      slots = ['conv2 0.0 conv_dw', 'bn2 0.1 bn1', 'conv3 1 conv_pw']
      slots += ['bn3 2 bn2']
    ends = f'layer{stage + 1}.{block}.', f'features.{index}.conv.'
    ends += (f'blocks.{stage}.{block}.',)
    for slot in map(str.split, slots):
      rows.append(' '.join(map(''.join, zip(ends, slot, strict=True))))
  return {other: own for own, *two in map(str.split, rows) for other in two}


def module(part: str) -> str:
  """Returns torch's name of a module outside of any attention."""
  for pattern, name in NUMBERED.items():
    if match := re.fullmatch(pattern, part):
      return name(match)
  return MODULES.get(part, part)


def table(variables: Any) -> dict[str, Entry]:
  """Returns torch's names of a network's arrays, and where each belongs.

  Args:
    variables: tree of arrays or shapes: 'params' and 'batch_stats'.

  Raises:
    ValueError: two arrays would have the same name.
  """
  leaves: dict[Any, Any] = traverse_util.flatten_dict(variables)
  children = collections.defaultdict(set)  # Modules in each module.
  for path in leaves:
    for i in range(1, len(path) - 1):
      children[path[1:i]].add(path[i])
  entries = {}
  for path, leaf in leaves.items():
    *modules, last = path[1:]
    at = [*modules, 'attention'].index('attention')
    known = ATTENTION.get(frozenset(children[tuple(modules[: at + 1])]))
    outside, inside = map(module, modules[:at]), modules[at:]
    as_timm = known is not None and len(inside) == 2
    if as_timm:
      inside = [known[inside[1]]]
    rank = len(leaf.shape)
    axes, window = tuple(range(rank)), ()
    if last == 'kernel' and rank > 1:
      axes = (rank - 1, rank - 2, *range(rank - 2))
      window = (1, 1) if as_timm and rank == 2 else ()
    transposed = tuple(leaf.shape[axis] for axis in axes)
    shape = (*transposed, *window)
    if rank > 2 and path[-2] in FLAT:
      shape = (shape[0], math.prod(shape[1:]))
    name = '.'.join([*outside, *inside, LEAVES.get(last, last)])
    entry = Entry(path, axes, transposed, shape)
    if entries.setdefault(name, entry) is not entry:
      both = ' and '.join('/'.join(p) for p in (entries[name].path, path))
      raise ValueError(f'{both} are both {name} in torch; rename a module')
  return entries


def without_prefix(
    arrays: Mapping[str, Any], report: Callable[[str], object]
) -> dict[str, Any]:
  """Returns arrays without what all names begin with; reports a line."""
  arrays = {one_line(name): array for name, array in arrays.items()}
  arrays.pop(AVERAGED, None)
  for _ in range(9):  # A hostile file has a name of thousands of them.
    for prefix in PREFIXES:
      if arrays and all(name.startswith(prefix) for name in arrays):
        report(f'took {prefix!r} off every name')
        arrays = {n.removeprefix(prefix): a for n, a in arrays.items()}
  return arrays


def renew(
    arrays: Mapping[str, Any], report: Callable[[str], object]
) -> dict[str, Any]:
  """Returns arrays by the names torch has now; reports a line for former ones.

  Those are of a detector's modules, or of networks that were renamed.
  """
  mobile, renewed = {}, {}
  if arrays.keys() & {'features.18.0.weight', 'conv_stem.weight'}:
    mobile = _of_mobile_net()
  for name, array in arrays.items():
    inside = name.rpartition('.')[0]
    name = name.replace(inside, mobile.get(inside, inside), 1)
    for former, now in FORMER.items():
      name = re.sub(f'^{former}$', now, name)
    renewed[name] = array
  if former := arrays.keys() - renewed.keys():
    report(f'took the present names for {len(former)} former ones')
  return renewed


def counters(names: Sequence[str]) -> list[str]:
  """Returns names of the batch counters torch keeps beside its statistics."""
  ends = '.running_mean', '.num_batches_tracked'
  return [n.replace(*ends) for n in names if n.endswith(ends[0])]


def in_aw_branch(path: str) -> str | None:
  """Tells whether a path lies in what an AW-convolution adds to a plain one.

  Args:
    path: such as 'params/stage1_block1/conv2/attention/norm1/scale', for which
      it returns what holds all of that, 'stage1_block1/conv2/attention'.
  """
  own = r'(attention(?=/(pointwise|norm)[12]/)|refinement(?=/))'
  match = re.match(rf'[^/]+/((.+?/)?{own})', path)
  return match and match[1]
