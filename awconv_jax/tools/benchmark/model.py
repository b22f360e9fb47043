"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

import jax
from jax.sharding import Mesh
import numpy as np

from awconv_jax import errors, partition
from awconv_jax.tools.benchmark import (
    attention_branch,
    collectives,
    network_step,
    picture,
    timing,
)

BRANCH = 'aw:branch'
# Relative differences of loss and gradients' norm that are rounding.
TOLERANCES = {'float32': 1e-2, 'bfloat16': 1e-1}
PICTURE = picture.Picture(
    bars='variant',
    groups=('model', 'batch', 'side', 'devices'),
    height='ratio',
    title='time, ratio to plain',
)


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    model: name of the network.
    variant: 'plain'; 'aw:' and the implementation; or 'aw:branch', the
      attention branches of all AW-convolutions alone, forward and backward.
    batch: images a step.
    side: height and width of the images.
    devices: that share the batch.
    milliseconds: median time of a step.
    calls: how many were timed.
    ratio: time over that of 'plain' in the same run.
    images_per_second: of the step.
    temporary_mib: temporary memory of each device.
    all_gathers: in the compiled program, each place once.
    all_reduces: likewise.
    error: of loss and gradients' norm, relative to the first AW variant.
  """

  model: str
  variant: str
  batch: int
  side: int
  devices: int
  milliseconds: float
  calls: int
  ratio: float
  images_per_second: float
  temporary_mib: float | None
  all_gathers: int
  all_reduces: int
  error: float


def _batches(mesh: Mesh, batch: int, side: int):
  """Returns two random batches of images and labels, over the mesh."""
  if batch % mesh.size:
    raise errors.InputError(
        f'--batches: the {mesh.size} devices cannot share {batch} images evenly'
    )
  rng = np.random.default_rng(0)
  rows = partition.over_batch(mesh)
  return [
      (
          jax.device_put(
              rng.normal(size=(batch, side, side, 3)).astype(np.float32), rows
          ),
          jax.device_put(rng.integers(1000, size=batch, dtype=np.int32), rows),
      )
      for _ in range(2)
  ]


def _check_errors(measured, dtype):
  """Raises ReportedError if the AW variants differ in more than rounding."""
  for variant, m in measured.items():
    if not m.error <= TOLERANCES[dtype]:
      raise errors.ReportedError(
          f'{variant}: loss or gradients differ from those of the first AW '
          f'variant by {m.error:.1e} (relative): not timed'
      )


def _measure(
    networks: Mapping[str, network_step.NetworkStep],
    mesh: Mesh,
    batches,
    seconds: float,
):
  """Returns what is compiled and what was measured, by variant."""
  ready = {
      variant: timing.compile_jax(
          inputs=[network.arguments(batch) for batch in batches],
          **network.compilation(),
      )
      for variant, network in networks.items()
  }
  check = {}
  aw = [variant for variant in networks if variant != 'plain']
  if aw:
    check = dict.fromkeys(aw[1:], aw[0])
    first = networks[aw[0]]
    images = jax.ShapeDtypeStruct(batches[0][0].shape, batches[0][0].dtype)
    ready[BRANCH] = attention_branch.prepare(
        first.model, first.variables, images, mesh
    )
  return ready, timing.measure(ready, seconds=seconds, check=check)


def run(
    *,
    name: str,
    variants: Sequence[str],
    batches: Sequence[int],
    side: int,
    dtype: str,
    seconds: float,
) -> Iterator[Row]:
  """Measures, and yields rows as they come.

  Args:
    name: of the network, such as 'resnet50'.
    variants: 'aw:<implementation>', besides 'plain'.
    batches: batch sizes; each is shared by all devices.
    side: height and width of the images.
    dtype: of the computation.
    seconds: time for each measurement.

  Raises:
    InputError: the devices cannot share a batch evenly.
    ReportedError: the AW variants do not compute the same.
  """
  mesh = partition.create_mesh()
  pairs = {batch: _batches(mesh, batch, side) for batch in batches}
  # The mesh is in force while functions are traced, as in the train loop.
  with jax.set_mesh(mesh):
    networks = {
        v: network_step.NetworkStep(name, mesh, side, dtype=dtype, **_fields(v))
        for v in dict.fromkeys(['plain', *variants])
    }
  for batch in batches:
    with jax.set_mesh(mesh):
      ready, measured = _measure(networks, mesh, pairs[batch], seconds)
    _check_errors(measured, dtype)
    for variant, m in measured.items():
      program = ready[variant].program
      yield Row(
          model=name,
          variant=variant,
          batch=batch,
          side=side,
          devices=mesh.size,
          milliseconds=m.milliseconds,
          calls=m.calls,
          ratio=m.milliseconds / measured['plain'].milliseconds,
          images_per_second=1e3 * batch / m.milliseconds,
          temporary_mib=ready[variant].temporary_mib,
          all_gathers=collectives.count(program, 'all-gather'),
          all_reduces=collectives.count(program, 'all-reduce'),
          error=m.error,
      )


def _fields(variant: str) -> dict:
  """Returns the fields of a network that make it the variant."""
  kind, _, implementation = variant.partition(':')
  if kind == 'plain':
    return {}
  return dict(aw_conv=True, aw_options=dict(implementation=implementation))


def summarize(rows: Sequence[Row]) -> list[str]:
  """Returns lines with the share of the attention branches in a step."""
  lines = []
  for branch in rows:
    if branch.variant != BRANCH:
      continue
    step = next(
        r
        for r in rows
        if r.batch == branch.batch and r.variant not in ('plain', BRANCH)
    )
    share = 100 * branch.milliseconds / step.milliseconds
    lines.append(
        f'attention branch: {share:.1f} % of {step.variant}, '
        f'batch {branch.batch}'
    )
  return lines
