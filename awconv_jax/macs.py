"""Parameters and multiply-adds (MACs) of a network, module by module.

MACs are counted in the jaxpr: convolutions and matrix products, and products in
the scope `MULTIPLY_ADDS`, inside loops too (XLA's analysis counts the body of a
loop once). For an AW-convolution that includes its attention branch and the
product K * (1 + A).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from awconv_jax.ops.aw_conv.forms import MULTIPLY_ADDS


def _of_equation(equation: Any, scope: str) -> int:
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


def _has_kernel(jaxpr: core.Jaxpr) -> bool:
  """Tells whether a jaxpr calls a kernel in Pallas, or will where lowered."""
  return any(
      equation.primitive.name in ('pallas_call', 'on_platform')
      or any(map(_has_kernel, core.jaxprs_in_params(equation.params)))
      for equation in jaxpr.eqns
  )


def _of_platforms(
    forms: Iterable[core.Jaxpr], scope: str, times: int
) -> Counter:
  """Returns the MACs of one function that has a form for each platform.

  They are the least of a form. What the programs of a kernel do is not seen,
  and what a form makes and nobody uses does not count.
  """
  counts = []
  for jaxpr in forms:
    if not _has_kernel(jaxpr):
      used = [True] * len(jaxpr.outvars)
      counts.append(Counter())
      _add(counts[-1], partial_eval.dce_jaxpr(jaxpr, used)[0], scope, times)
  return min(counts, key=Counter.total)


def _add(macs: Counter, jaxpr: core.Jaxpr, scope: str, times: int) -> None:
  for equation in jaxpr.eqns:
    stack = str(equation.source_info.name_stack)
    inner_scope = '/'.join(filter(None, (scope, stack)))
    inner = core.jaxprs_in_params(equation.params)
    if equation.params.get('branches_platforms') is not None:
      macs.update(_of_platforms(inner, inner_scope, times))
      continue
    macs[inner_scope] += times * _of_equation(equation, inner_scope)
    for each in inner:
      _add(macs, each, inner_scope, times * _repeats(equation))


def count(function: Callable[..., Any], *args: Any) -> dict[str, int]:
  """Counts MACs by name scope, such as 'ResNet/stage1_block1/conv2'.

  Args:
    function: what to trace; nothing is computed.
    *args: its arguments, arrays or shapes.

  Raises:
    NotImplementedError: there is a while loop.
  """
  macs = Counter()
  _add(macs, jax.make_jaxpr(function)(*args).jaxpr, '', 1)
  return {scope: number for scope, number in macs.items() if number}


def rows(
    params: Mapping[str, Any], macs: Mapping[str, int]
) -> list[dict[str, Any]]:
  """Returns a row for each top-level module, and the last for their total.

  A row holds 'module', 'parameters' and 'multiply_adds'.

  Args:
    params: the parameters, by module.
    macs: MACs by scope, as of `count`, for one image.
  """
  by_module = Counter()
  for scope, number in macs.items():
    # A scope is a path of modules and methods; the first that has parameters.
    module = next((p for p in scope.split('/') if p in params), '(other)')
    by_module[module] += number
  sizes = Counter()
  for module, tree in params.items():
    sizes[module] = sum(leaf.size for leaf in jax.tree.leaves(tree))
  # In the order of the computation; `params` is ordered by the alphabet.
  counted = [(m, sizes[m], by_module[m]) for m in {**by_module, **sizes}]
  counted.append(('total', sizes.total(), by_module.total()))
  names = ('module', 'parameters', 'multiply_adds')
  return [dict(zip(names, row, strict=True)) for row in counted]
