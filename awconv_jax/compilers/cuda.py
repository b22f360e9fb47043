"""CUDA's compiler without a GPU, and what it says of a program's kernels."""

from collections.abc import Iterator, Mapping
import dataclasses
import importlib.util
import os
import pathlib
import re
import subprocess
from typing import Any

from jax.experimental import topologies

# What XLA has to know of a card: of NVIDIA's data sheets, and of the tables of
# compute capabilities in the CUDA programming guide.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core}
  shared_memory_per_block_optin: {shared_per_block}
  threads_per_core_limit: {threads_per_core}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """A kind of GPU. Sizes are in bytes, rates in bytes and cycles a second."""

  name: str
  capability: tuple[int, int]
  cores: int  # Streaming multiprocessors.
  fpus_per_core: int
  threads_per_core: int = 2048
  shared_per_core: int
  l2: int
  bandwidth: int
  clock: float  # GHz.
  memory: int
  modules = ('jax_plugins.xla_cuda13', 'nvidia.cu13')
  extra, package = 'cuda13', 'jax-cuda13-plugin'
  platform = 'cuda'
  separator = 'x'

  @property
  def usable(self) -> int:
    """Bytes that a program may have: as much as JAX takes, if not told else."""
    return self.memory * 3 // 4

  def environment(self, folder: str) -> dict[str, str]:
    """Returns what has XLA compile without a GPU, and dump to a folder."""
    (compiler,) = _compiler_folders()
    return dict(
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',
        # XLA dumps a stack for every all-reduce; to look up its functions takes
        # longer than all else.
        LLVM_DISABLE_SYMBOLIZATION='1',
        PATH=f'{compiler}/bin:{os.environ["PATH"]}',
        XLA_FLAGS=(
            f'--xla_gpu_cuda_data_dir={compiler} --xla_gpu_autotune_level=0 '
            f'--xla_dump_to={folder} --xla_dump_emitter_re=.*'
        ),
    )

  def devices(self, number: str, machines: int = 1) -> list[Any]:
    """Returns devices to lower for: so many in each of the machines."""
    major, minor = self.capability
    description = _DESCRIPTION.format(
        **vars(self),
        major=major,
        minor=minor,
        # Each block keeps one KiB for the system.
        shared_per_block=self.shared_per_core - 1024,
        feature='feature_extension: ACCELERATED_FEATURES' * (major >= 9),
    )
    found = topologies.get_topology_desc(
        *('cuda', 'cuda'),
        target_config=description,
        topology=f'1x{machines}x{number}',
    )
    return found.devices

  def columns(self, text: str, folder: str) -> dict[str, Any]:
    """Returns what the compiler says of the kernels of a program."""
    del text
    kernels = list(read_kernels(pathlib.Path(folder)))
    names = ('registers', 'spill_bytes', 'shared_kib')
    most = {n: max((k[n] for k in kernels), default=0) for n in names}
    ours = (k for k in kernels if 'fusion' not in k['name'])
    line = '{name} {registers} {shared_kib:g}'
    return most | dict(
        kernels=', '.join(line.format(**k) for k in ours) or None
    )


CARDS = {
    'a100': Card(
        name='NVIDIA A100-SXM4-80GB',
        capability=(8, 0),
        cores=108,
        fpus_per_core=64,
        shared_per_core=164 * 2**10,
        l2=40 * 2**20,
        bandwidth=2_039_000_000_000,
        clock=1.41,
        memory=80 * 2**30,
    ),
    'h100': Card(
        name='NVIDIA H100 80GB HBM3',
        capability=(9, 0),
        cores=132,
        fpus_per_core=128,
        shared_per_core=228 * 2**10,
        l2=50 * 2**20,
        bandwidth=3_352_000_000_000,
        clock=1.98,
        memory=79 * 2**30,
    ),
    'l4': Card(
        name='NVIDIA L4',
        capability=(8, 9),
        cores=58,
        fpus_per_core=128,
        threads_per_core=1536,
        shared_per_core=100 * 2**10,
        l2=48 * 2**20,
        bandwidth=300_000_000_000,
        clock=2.04,
        memory=22 * 2**30,
    ),
}


def _compiler_folders() -> list[str]:
  """Returns where the wheels of CUDA's compiler lie."""
  found = importlib.util.find_spec('nvidia.cu13')
  return list(found.submodule_search_locations)[:1] if found else []


def read_kernels(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the kernels that a dumped program starts, one for each name.

  Of those that libraries hold, such as cuDNN's, nothing is known.
  """
  compiled = {}
  for file in folder.glob('*.ptx'):
    compiled |= assemble(file)
  (sequence,) = folder.glob('*.thunk_sequence.txt')
  line = r'\] (\S+) +grid: (\[.*?\]) threads: \[(\d+), .*shared_memory: (\d+)'
  for name, grid, threads, shared in re.findall(line, sequence.read_text()):
    yield dict(
        name=name,
        grid=grid,
        threads=int(threads),
        shared_kib=int(shared) / 2**10,
        **compiled.get(name, dict(registers=0, spill_bytes=0)),
    )


def assemble(file: pathlib.Path) -> Mapping[str, dict[str, int]]:
  """Returns registers and bytes spilled by a thread, by name of a kernel."""
  target = re.search(r'^\.target (\w+)', file.read_text(), re.M)
  if not target:
    return {}
  said = subprocess.run(
      ['ptxas', '-v', f'-arch={target[1]}', str(file), '-o', os.devnull],
      capture_output=True,
      text=True,
      check=True,
  ).stderr
  found = re.findall(
      r"entry function '(\S+)'.*?, (\d+) bytes spill stores, "
      r'(\d+) bytes spill loads.*?Used (\d+) registers',
      said,
      re.S,
  )
  return {
      name: dict(registers=int(used), spill_bytes=int(stored) + int(loaded))
      for name, stored, loaded, used in found
  }
