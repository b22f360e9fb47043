"""Compiles one program for an accelerator that is not there.

  python -m benchmarks.deviceless '{"chip": "v5e", ...}' FOLDER

Prints what the compiler says of it as a line of JSON. `benchmarks.static` sets
the environment in which the compilers are to be loaded, and says what to
compile.
"""

import dataclasses
import functools
import json
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
import numpy as np

from awconv_jax import models
from awconv_jax.train import partition
from benchmarks import network, op, tpu_program


@dataclasses.dataclass(frozen=True)
class TPU:
  """A kind of TPU: what libtpu calls it, and the shapes of 4 and 8 chips."""

  accelerator: str
  shapes: tuple[str, str]
  modules = ('libtpu',)

  def environment(self, chip: str, folder: str) -> dict[str, str]:
    """Returns what has libtpu compile without a TPU, and dump to a folder."""
    return dict(
        JAX_PLATFORMS='cpu',
        JAX_ENABLE_COMPILATION_CACHE='0',  # It would dump nothing.
        ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # Else one process at a time.
        TPU_SKIP_MDS_QUERY='1',
        TPU_ACCELERATOR_TYPE=self.accelerator,
        TPU_WORKER_HOSTNAMES='localhost',
        LIBTPU_INIT_ARGS=(
            f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
            '--xla_jf_emit_annotations=true '
            '--xla_jf_dump_llo_pass_label_regex=final_bundles'
        ),
    )

  def devices(self, chip: str, number: int) -> list[Any]:
    shape = self.shapes[number > 4]
    found = topologies.get_topology_desc(
        platform='tpu', topology_name=f'{chip}:{shape}'
    )
    return found.devices[:number]

  def columns(self, chip: str, text: str, folder: str) -> dict[str, Any]:
    kernel_of = functools.partial(tpu_program.read_kernel, folder, chip)
    cycles, kernel = tpu_program.estimate(text, kernel_of)
    return dict(
        kilocycles=cycles / 1e3,
        kernel_kilocycles=kernel.cycles / 1e3,
        guarded=kernel.guarded / 1e3,
        spills=kernel.spills,
    )


CHIPS = {
    'v4': TPU('v4-8', ('2x2x1', '2x2x2')),
    'v5e': TPU('v5litepod-4', ('2x2', '2x4')),
    'v5p': TPU('v5p-8', ('2x2x1', '2x2x2')),
    'v6e': TPU('v6e-4', ('2x2', '2x4')),
}


def environment(chip: str, folder: str) -> dict[str, str]:
  """Returns the environment in which a compiler has to be loaded."""
  return CHIPS[chip].environment(chip, folder)


def _lower_op(devices, request):
  """Lowers a form, with the layouts of operands and results left free."""
  names = ('channels', 'side', 'stride', 'batch', 'expansion')
  shapes = op.input_shapes(*(request[name] for name in names))
  operands = [jax.ShapeDtypeStruct(s, request['dtype']) for s in shapes]
  function = op.function_of(
      request['implementation'], request['direction'], request['stride']
  )
  free = Format(Layout.AUTO, SingleDeviceSharding(devices[0]))
  function = jax.jit(function, in_shardings=free, out_shardings=free)
  return function.lower(*operands)


def _lower_step(devices, request):
  """Lowers a training step on 224 x 224 pixels."""
  mesh = Mesh(np.array(devices), (partition.DATA_AXIS,))
  names = ('model', 'variant', 'dtype')
  model = network.create_model(*(request[name] for name in names))
  shape = (models.IMAGENET_SIDE, models.IMAGENET_SIDE, 3)
  with jax.set_mesh(mesh):
    init, step = network.create_step(model, mesh, shape, seed=0)
    batch = dict(
        image=jax.ShapeDtypeStruct((request['batch'], *shape), jnp.float32),
        label=jax.ShapeDtypeStruct((request['batch'],), jnp.int32),
    )
    return step.lower(jax.eval_shape(init), batch)


def main(request: str, folder: str) -> None:
  """Compiles what is asked for, and prints its columns."""
  asked = json.loads(request)
  chip = CHIPS[asked['chip']]
  start = time.perf_counter()
  devices = chip.devices(asked['chip'], asked['devices'])
  lower = _lower_step if 'model' in asked else _lower_op
  compiled = lower(devices, asked).compile()
  text = compiled.as_text()
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis()
  columns = chip.columns(asked['chip'], text, folder) | dict(
      temporary_mib=memory.temp_size_in_bytes / 2**20,
      megabytes=costs.get('bytes accessed', 0) / 1e6,
      all_gathers=network.count_exchanges(text, 'all-gather'),
      all_reduces=network.count_exchanges(text, 'all-reduce'),
      compile_seconds=time.perf_counter() - start,
  )
  print(json.dumps(columns), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
