"""Parameters and multiply-adds (MACs) of a network, module by module.

MACs are counted in the jaxpr: convolutions and matrix products, and products in
the scope `MULTIPLY_ADDS`, inside loops too (XLA's analysis counts the body of a
loop once). For an AW-convolution that includes its attention branch and the
product K * (1 + A).
"""

from collections import Counter
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from awconv_jax import text_table
from awconv_jax.ops.aw_conv.forms import MULTIPLY_ADDS


def _own_macs(equation: Any, scope: str) -> int:
  """Returns the MACs of one convolution or product, else 0."""
  if equation.primitive.name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    out_dimension = equation.params['dimension_numbers'].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[out_dimension]
  elif equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    per_output = math.prod(shape[i] for i in contracted)
  elif equation.primitive.name == 'mul' and MULTIPLY_ADDS in scope:
    per_output = 1
  else:
    return 0
  return math.prod(equation.outvars[0].aval.shape) * per_output


def _repeats(equation: core.JaxprEqn) -> int:
  """Returns how often the inner jaxpr of an equation runs."""
  name = equation.primitive.name
  if name == 'while':
    raise NotImplementedError('MACs of a while loop: its length is not known')
  if name == 'shard_map':
    return equation.params['mesh'].size
  return equation.params['length'] if name == 'scan' else 1


def _inner(equation: core.JaxprEqn) -> list[core.Jaxpr]:
  """Returns the jaxprs inside an equation that are to be counted."""
  inner = list(core.jaxprs_in_params(equation.params))
  by_platform = equation.params.get('branches_platforms') is not None
  if by_platform and any(map(_has_kernel, inner)):
    # The forms of one function for different platforms. What the programs of a
    # kernel do is not seen; another form does the same, less what it makes and
    # nobody uses.
    other = next(jaxpr for jaxpr in inner if not _has_kernel(jaxpr))
    return [partial_eval.dce_jaxpr(other, [True] * len(other.outvars))[0]]
  return inner


def _has_kernel(jaxpr: core.Jaxpr) -> bool:
  """Tells whether a jaxpr calls a kernel in Pallas."""
  return any(
      equation.primitive.name == 'pallas_call'
      or any(map(_has_kernel, core.jaxprs_in_params(equation.params)))
      for equation in jaxpr.eqns
  )


def _walk(jaxpr: core.Jaxpr, scope: str, times: int, macs: Counter) -> None:
  for equation in jaxpr.eqns:
    stack = str(equation.source_info.name_stack)
    inner_scope = '/'.join(filter(None, (scope, stack)))
    macs[inner_scope] += times * _own_macs(equation, inner_scope)
    repeats = times * _repeats(equation)
    for inner in _inner(equation):
      _walk(inner, inner_scope, repeats, macs)


def count_macs(function: Callable[..., Any], *args: Any) -> dict[str, int]:
  """Counts MACs by name scope, such as 'ResNet/stage1_block1/conv2'.

  Args:
    function: what to trace; nothing is computed.
    *args: its arguments, arrays or shapes.

  Raises:
    NotImplementedError: there is a while loop.
  """
  macs = Counter()
  _walk(jax.make_jaxpr(function)(*args).jaxpr, '', 1, macs)
  return {scope: count for scope, count in macs.items() if count}


@dataclasses.dataclass
class Row:
  """One line of the table: a module's parameters and MACs per image."""

  module: str
  parameters: int
  multiply_adds: int


def rows(
    params: Mapping[str, Any], macs: Mapping[str, int]
) -> tuple[list[Row], Row]:
  """Returns a row for each top-level module, and their total.

  Args:
    params: the parameters, by module.
    macs: MACs by scope, as of `count_macs`, for one image.
  """
  by_module = Counter()
  for scope, count in macs.items():
    # A scope is a path of modules and methods; the first that has parameters.
    module = next((p for p in scope.split('/') if p in params), '(other)')
    by_module[module] += count
  # In the order of the computation; `params` is ordered by the alphabet.
  table = []
  for name in dict.fromkeys([*by_module, *params]):
    leaves = jax.tree.leaves(params.get(name, {}))
    parameters = sum(leaf.size for leaf in leaves)
    table.append(Row(name, parameters, by_module[name]))
  parameters = sum(row.parameters for row in table)
  return table, Row('total', parameters, sum(by_module.values()))


def format_table(table: list[Row], total: Row) -> str:
  """Returns the rows as text, MACs for one image."""
  return text_table.make([*map(vars, table), vars(total)], text_table.thousands)
