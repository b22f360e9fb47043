"""Slices of TPUs and machines with GPUs by name: '2*v5e:16x16', 'h100x8'."""

import dataclasses
import re
from typing import Any

from awconv_jax.compilers.alone import CHIPS
from awconv_jax.errors import InputError

_NUMBER = r'[1-9]\d*'
_FORM = re.compile(
    rf'(?:({_NUMBER})\*)?(\w+?)'
    rf'(?::({_NUMBER}(?:x{_NUMBER})+)|x({_NUMBER}))'
)
KNOWN = 'v5e:8x8, v5p:4x4x4, v6e:16x16, 2*v5e:16x16 (two slices)'
KNOWN += ', h100x8, 4*h100x8 (four machines)'


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices, or machines, of one kind that train together.

  Attributes:
    chip: a name in `alone.CHIPS`.
    shape: of a slice, '8x8'; or how many GPUs are in a machine.
    slices: how many there are.
  """

  chip: str
  shape: str
  slices: int = 1

  def __str__(self) -> str:
    name = f'{self.chip}{CHIPS[self.chip].separator}{self.shape}'
    return f'{self.slices}*{name}' if self.slices > 1 else name

  def devices(self) -> list[Any]:
    """Returns devices to lower for; InputError if the compiler knows none.

    In the environment of `alone.environment` alone.
    """
    return CHIPS[self.chip].devices(self.shape, self.slices)


def parse(text: str) -> Topology:
  """Returns what a text names; InputError, with what there is, if nothing."""
  found = _FORM.fullmatch(text)
  slices, chip, shape, number = found.groups() if found else (None,) * 4
  named = CHIPS.get(chip)
  size = named and (shape if named.separator == ':' else number)
  if not size:
    raise InputError(
        f'unknown topology {text!r}; known: {KNOWN}; chips: {", ".join(CHIPS)}'
    )
  return Topology(chip, size, int(slices or 1))
