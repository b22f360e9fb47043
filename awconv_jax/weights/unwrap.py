"""Takes off what training scripts put around a state dict."""

from collections.abc import Callable, Mapping
from typing import Any

# Where scripts keep the weights beside epoch, optimizer and the like.
KEYS = ('state_dict', 'model')
# Of DataParallel and of compiled models.
PREFIXES = ('module.', '_orig_mod.')


def take_inner(
    tree: Mapping[str, Any], report: Callable[[str], object]
) -> Mapping[str, Any]:
  """Returns the dict of weights in a checkpoint, or what it was given.

  Args:
    tree: what the file holds.
    report: called with one line for each wrapping taken off.
  """
  for key in KEYS:
    inner = tree.get(key)
    if isinstance(inner, Mapping):
      beside = ', '.join(str(k) for k in tree if k != key)
      without = f', without {beside}' if beside else ''
      report(f'took the weights under {key!r}{without}')
      return take_inner(inner, report)
  return tree


def strip_prefixes(
    tree: Mapping[str, Any], report: Callable[[str], object]
) -> dict[str, Any]:
  """Returns the dict without the prefixes that all its names have."""
  for prefix in PREFIXES:
    if tree and all(name.startswith(prefix) for name in tree):
      report(f'took {prefix!r} off every name')
      inner = {name.removeprefix(prefix): v for name, v in tree.items()}
      return strip_prefixes(inner, report)
  return dict(tree)
