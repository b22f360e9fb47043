"""Whole networks: a training step with and without AW-convolutions."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools

import jax
from jax.sharding import Mesh
import numpy as np

from awconv_jax import errors
from awconv_jax.train import partition
from benchmarks import (
    attention_branch,
    collectives,
    network_step,
    picture,
    timing,
)

BRANCH = 'aw:branch'
# What the others are compared with: the first that is measured anyway, or else
# the last, which needs the least memory.
REFERENCES = ('aw:vmap', 'aw:map')
# Relative differences of loss and gradients' norms that are rounding.
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
    variant: 'plain'; the attention of activations, such as 'se'; 'aw:' and
      the implementation; or 'aw:branch', the attention branches of all
      AW-convolutions alone, forward and backward.
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
    error: of the loss, or of the norms of all gradients, relative to those of
      the plainest AW form: 'aw:vmap' or 'aw:map'; the larger of both.
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


def _check_errors(differences, *, dtype, reference):
  """Raises ReportedError if the AW variants differ in more than rounding."""
  for variant, difference in differences.items():
    if not difference <= TOLERANCES[dtype]:
      raise errors.ReportedError(
          f'{variant}: loss or gradients differ from those of {reference} by '
          f'{difference:.1e} (relative): not timed'
      )


def _is_aw(variant: str) -> bool:
  return variant.startswith('aw:')


def _choose_reference(variants: Sequence[str]) -> str | None:
  """Returns what AW variants are compared with; None where there are none."""
  if not any(map(_is_aw, variants)):
    return None
  return next((r for r in REFERENCES if r in variants), REFERENCES[-1])


def _measure(
    networks: Mapping[str, network_step.NetworkStep],
    variants: Sequence[str],
    mesh: Mesh,
    batches,
    *,
    seconds: float,
    dtype: str,
):
  """Returns what is compiled and what was measured, by variant.

  Args:
    networks: by variant; one that is not in `variants` is the reference.
    variants: those to time.
    mesh: in force.
    batches: two of images and labels.
    seconds: time for each measurement.
    dtype: of the computation.
  """
  reference = _choose_reference(variants)
  check = {v: reference for v in filter(_is_aw, variants) if v != reference}
  programs = {
      variant: dict(
          inputs=[network.arguments(batch) for batch in batches],
          **network.compilation(),
      )
      for variant, network in networks.items()
  }
  ready = timing.compile_all(programs, check)
  aw = [v for v in variants if _is_aw(v) and v in ready]
  untimed = {v: ready.pop(v) for v in networks if v not in variants}
  if aw:
    first = networks[aw[0]]
    images = jax.ShapeDtypeStruct(batches[0][0].shape, batches[0][0].dtype)
    ready[BRANCH] = attention_branch.prepare(
        first.model, first.variables, images, mesh
    )
  measured = timing.measure(
      ready,
      seconds=seconds,
      check=check,
      refuse=functools.partial(_check_errors, dtype=dtype, reference=reference),
      untimed=untimed,
  )
  return ready, measured


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
    variants: 'aw:<implementation>' and names of attentions, besides 'plain'.
      Those with AW are compared with 'aw:vmap' or 'aw:map', which takes one
      step more if neither is here.
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
  timed = list(dict.fromkeys(['plain', *variants]))
  reference = _choose_reference(timed)
  used = [v for v in dict.fromkeys([*timed, reference]) if v is not None]
  # The mesh is in force while functions are traced, as in the train loop.
  with jax.set_mesh(mesh):
    networks = {
        v: network_step.NetworkStep(name, mesh, side, dtype=dtype, **_fields(v))
        for v in used
    }
  for batch in batches:
    with jax.set_mesh(mesh):
      ready, measured = _measure(
          networks, timed, mesh, pairs[batch], seconds=seconds, dtype=dtype
      )
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
  _, _, implementation = variant.partition(':')
  if not _is_aw(variant):
    return {} if variant == 'plain' else dict(attention=variant)
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
        if r.batch == branch.batch and _is_aw(r.variant) and r != branch
    )
    share = 100 * branch.milliseconds / step.milliseconds
    lines.append(
        f'attention branch: {share:.1f} % of {step.variant}, '
        f'batch {branch.batch}'
    )
  return lines
