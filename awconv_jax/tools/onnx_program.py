"""A function of JAX as a file of ONNX, by jax2onnx 0.17 or newer."""

from collections.abc import Callable, Mapping
import logging
import math
import pathlib
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from awconv_jax.errors import InputError, first_line

PLATFORM = 'cpu'
# Those that hold the jaxpr that they call, and under which name.
_CALLS = {
    'jit': 'jaxpr',
    'custom_jvp_call': 'call_jaxpr',
    'custom_vjp_call': 'call_jaxpr',
}


def evaluate(closed: core.ClosedJaxpr, arguments: Any) -> list[Any]:
  """Computes a jaxpr as a program for one platform, without its calls.

  For jax2onnx knows no `lax.platform_dependent`. What depends on no argument is
  computed here.
  """
  jaxpr, values = closed.jaxpr, {}
  values.update(zip(jaxpr.constvars, closed.consts, strict=True))
  values.update(zip(jaxpr.invars, arguments, strict=True))

  def value_of(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    operands = [*map(value_of, equation.invars)]
    if name == 'platform_index':
      kinds = params['platforms']
      number = (i for i, k in enumerate(kinds) if k is None or PLATFORM in k)
      found = [np.int32(next(number))]
    elif name == 'cond' and isinstance(operands[0], np.integer):
      found = evaluate(params['branches'][operands[0]], operands[1:])
    elif name in _CALLS:
      called = params[_CALLS[name]]
      if not isinstance(called, core.ClosedJaxpr):
        called = core.ClosedJaxpr(called, ())
      found = evaluate(called, operands)
    elif name == 'optimization_barrier':
      found = operands
    elif name == 'dot_general':
      found = [_product(*operands, params['dimension_numbers'])]
    else:
      found = equation.primitive.bind(*operands, **params)
      found = found if equation.primitive.multiple_results else [found]
    values.update(zip(equation.outvars, found, strict=True))
  return [*map(value_of, jaxpr.outvars)]


def _product(a, b, dimension_numbers):
  """Returns `lax.dot_general` of matrices, of which ONNX makes a MatMul.

  Of several axes jax2onnx makes an Einsum that onnxruntime refuses.
  """
  summed, batch = dimension_numbers
  matrices, kept = [], []
  for number, array in enumerate((a, b)):
    others = [
        i
        for i in range(array.ndim)
        if i not in (*summed[number], *batch[number])
    ]
    parts = [[*batch[number]], others, [*summed[number]]]
    sizes = [[array.shape[i] for i in part] for part in parts]
    matrix = jnp.transpose(array, sum(parts, []))
    matrices.append(matrix.reshape([math.prod(s) for s in sizes]))
    kept.append(sizes)
  a, b = matrices
  out = jnp.matmul(a, jnp.swapaxes(b, 1, 2))
  return out.reshape(*kept[0][0], *kept[0][1], *kept[1][1])


def write(
    function: Callable[..., Mapping[str, Any]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    path: pathlib.Path,
) -> Callable[..., dict[str, np.ndarray]]:
  """Writes a function of arrays by name, and returns what runs the file.

  Args:
    function: takes and returns arrays by name.
    shapes: of what it takes; they are those of the file, too.
    path: of the file.

  Raises:
    InputError: jax2onnx is missing, or cannot translate the function.
  """
  try:
    import jax2onnx
    import onnxruntime
  except ImportError as error:
    raise InputError(
        f'--format=onnx needs {error.name!r}, in an environment of its own: '
        'see docs/export.md'
    ) from error
  # It warns of what it leaves out, by the hundred.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  closed, results = jax.make_jaxpr(function, return_shape=True)(**shapes)
  # Both dicts are flattened by the order of their keys.
  takes, gives = sorted(shapes), sorted(results)
  try:
    jax2onnx.to_onnx(
        lambda *arrays: tuple(evaluate(closed, arrays)),
        [shapes[name] for name in takes],
        input_names=takes,
        output_names=gives,
        return_mode='file',
        output_path=str(path),
    )
  except NotImplementedError as error:
    raise InputError(
        f'jax2onnx cannot translate this network: {first_line(error)}'
    ) from error
  quiet = onnxruntime.SessionOptions()
  quiet.log_severity_level = 3  # Errors.
  session = onnxruntime.InferenceSession(str(path), quiet)
  return lambda **arrays: dict(
      zip(gives, session.run(gives, arrays), strict=True)
  )
