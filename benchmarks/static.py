"""What the compilers of TPU and CUDA say of the operation and of a step.

Neither needs a device: libtpu and the wheels of CUDA's compiler are enough.
"""

from collections.abc import Iterator, Sequence
import itertools
from typing import Annotated, Any

from awconv_jax import models, options
from awconv_jax.compilers import alone
from awconv_jax.layers.attention import ATTENTION
from awconv_jax.ops.aw_conv import IMPLEMENTATIONS
from benchmarks import deviceless, op

DIRECTIONS = ('forward', 'both')


def run(
    *,
    chips: Sequence[Annotated[str, options.OneOf(alone.CHIPS)]] = ('v5e',),
    models: Sequence[Annotated[str, options.OneOf(models.MODELS)]] = (),
    implementations: Sequence[op.Form] = (),
    attentions: Sequence[Annotated[str, options.OneOf(ATTENTION)]] = (),
    batches: Sequence[options.PositiveInt] = (64,),
    devices: Annotated[int, options.Bound(ge=1, le=8)] = 1,
    channels: Sequence[options.PositiveInt] = (),
    directions: Sequence[
        Annotated[str, options.OneOf(DIRECTIONS)]
    ] = DIRECTIONS,
    expansion: options.PositiveInt = 16,
    kinds: Sequence[op.Kind] = ('dense',),
    dtype: Annotated[str, options.OneOf(op.TOLERANCES)] = 'bfloat16',
) -> Iterator[dict[str, Any]]:
  """Compiles without a device, and yields rows as they come.

  Args:
    chips: what to compile for.
    models: networks whose training step is compiled, with 224 x 224 pixels; the
      operation alone if none are given.
    implementations: forms besides 'plain'; if none are given, all for the
      operation, and 'auto' for a step.
    attentions: of activations, for a step without AW.
    batches: batch sizes; each is shared by all devices.
    devices: 1, or 8 that share the batch of a step.
    channels: of the operation's shapes; if none are given, all.
    directions: 'forward', or 'both', forward and backward, of the operation.
    expansion: e, input channels that share a value of the maps.
    kinds: of convolutions, see `op.SHAPES`.
    dtype: of operands, or of the computation of a step.

  Yields:
    For TPU 'kilocycles' are an estimate, 'ratio' is theirs to 'plain' by the
    same compiler, 'kernel_kilocycles' are those of Pallas' kernels among them,
    and 'guarded_kilocycles' those under a condition that may not hold, see
    `compilers.tpu`. 'spills' are instructions in innermost loops of kernels.
    For CUDA there is no estimate; 'registers', 'spill_bytes' of a thread and
    'shared_kib' are the most that a kernel takes. 'kernels' lists those of
    Pallas, with their kilocycles, or with registers and KiB of shared memory.
    Loops of the program count exchanges, and what they give a device in
    'reduced_mib', once. The operation's operands and results have the layouts
    that the compiler likes best, as inside of a network.
  """
  for chip in chips:
    alone.check_installed(chip)
  shapes = [
      shape
      for shape in op.shapes_of(kinds)
      if not channels or shape.channels in channels
  ]
  variants = ['plain', *attentions]
  variants += [f'aw:{name}' for name in implementations or ('auto',)]
  forms = ['plain', *(implementations or IMPLEMENTATIONS)]
  for chip, batch in itertools.product(chips, batches):
    shared = dict(chip=chip, devices=devices if models else 1, dtype=dtype)
    for name in models:
      row = dict(model=name, batch=batch)
      requests = [shared | row | dict(variant=v) for v in variants]
      yield from _rows(requests, 'variant', {})
    for direction, shape in itertools.product(
        directions, () if models else shapes
    ):
      row = shape._asdict() | dict(batch=batch, direction=direction)
      more = dict(expansion=expansion)
      requests = [shared | row | dict(implementation=f) for f in forms]
      yield from _rows(requests, 'implementation', more)


def _rows(requests, compared, more):
  """Yields a row for each request that can be compiled; the first is plain."""
  base = None
  for request in requests:
    found = alone.run(deviceless.__name__, request['chip'], request | more)
    name = request[compared]
    if 'failed' in found:
      why = f'ended by {found["failed"]}; {found["said"]}'
      print(f'left out: {name} of {request}: {why}', flush=True)
      continue
    cycles = found['kilocycles']
    base = cycles if name == 'plain' else base
    ratio = cycles / base if cycles and base else None
    yield request | dict(ratio=ratio) | found
