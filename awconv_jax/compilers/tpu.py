"""The TPU's compiler without a TPU, and what a program is estimated to cost.

XLA writes its estimate of the cycles beside each fusion and copy; the body of a
loop counts as often as it runs, once if the data decide that. Of a kernel of
Pallas it knows nothing, so the final VLIW bundles are counted, one a cycle.
Neither knows of waiting for memory. Copies that run beside the computation
count nothing.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from awconv_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A kind of TPU.

  Attributes:
    name: such as 'v5e'.
    accelerator: what libtpu calls four of them.
    shapes: of slices that there are, the smallest first; not all of v5p's.
    hosts: chips of one host, where they are not 2x2, by the shape of a slice.
    clock: GHz, at which the matrix units reach the peak of Google's data sheets
      (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm).
    memory: GiB that a program may have, as libtpu says when it wants more.
    product_cycles: cycles that a product keeps a matrix unit for.
  """

  name: str
  accelerator: str
  shapes: Sequence[str]
  hosts: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
  clock: float
  memory: float
  product_cycles: int = 16
  modules = ('libtpu',)
  extra, package = 'tpu', 'libtpu'
  platform = 'tpu'
  separator = ':'

  @property
  def usable(self) -> int:
    """Bytes that a program may have."""
    return int(self.memory * 2**30)

  def environment(self, folder: str) -> dict[str, str]:
    """Returns what has libtpu compile without a TPU, and dump to a folder."""
    return dict(
        ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # Else one process at a time.
        TPU_SKIP_MDS_QUERY='1',
        TPU_ACCELERATOR_TYPE=self.accelerator,
        TPU_WORKER_HOSTNAMES='localhost',
        LIBTPU_INIT_ARGS=(
            f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
            '--xla_jf_emit_annotations=true '
            '--xla_jf_dump_llo_pass_label_regex=^final_bundles$'
        ),
    )

  def devices(self, shape: str, slices: int = 1) -> list[Any]:
    """Returns devices to lower for: those of slices of a shape.

    Raises:
      InputError: libtpu knows no such slice.
    """
    more: dict[str, Any] = dict(num_slices=slices) if slices > 1 else {}
    if bounds := self.hosts.get(shape):
      more['chips_per_host_bounds'] = bounds
    try:
      return topologies.get_topology_desc(
          platform='tpu', topology_name=f'{self.name}:{shape}', **more
      ).devices
    except jax.errors.JaxRuntimeError as error:
      raise errors.InputError(
          f'unknown topology {self.name}:{shape}: {str(error).splitlines()[0]};'
          f' known: {", ".join(self.shapes)}'
      ) from error

  def columns(self, text: str, folder: str) -> dict[str, Any]:
    """Returns what a program, by its text and dumps, is estimated to cost."""

    def kernel_of(name):
      return read_kernel(folder, name, self.product_cycles)

    cycles, kernels = estimate(text, kernel_of)
    line = '{} {:.0f}'
    listed = (line.format(n, k.cycles / 1e3) for n, k in kernels.items())
    together = sum(kernels.values(), Kernel())
    return dict(
        kilocycles=(cycles + together.cycles) / 1e3,
        kernel_kilocycles=together.cycles / 1e3,
        guarded_kilocycles=together.guarded / 1e3,
        spills=together.spills,
        kernels=', '.join(listed) or None,
    )


# Where all chips lie in a plane.
_FLAT: Any = dict(
    shapes=('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    hosts={'1x1': (1, 1, 1), '2x4': (2, 4, 1)},
)
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8')
_CUBES += ('8x8x8', '8x8x16', '8x16x16', '16x16x16', '16x16x24')
CHIPS = {
    'v5e': Chip(
        name='v5e', accelerator='v5litepod-4', clock=1.5, memory=15.75, **_FLAT
    ),
    'v5p': Chip(
        name='v5p', accelerator='v5p-8', clock=1.75, memory=95.74, shapes=_CUBES
    ),
    'v6e': Chip(
        name='v6e',
        accelerator='v6e-4',
        clock=1.75,
        memory=31.25,
        product_cycles=8,
        **_FLAT,
    ),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel of Pallas, or what several take together.

  Attributes:
    cycles: of its bundles, each as often as its loops run; in an innermost
      loop of the products of a matrix unit, where these are more.
    guarded: those of them in regions under a condition, such as `pl.when`
      makes. They count once: what ours have there is for the first or the last
      step of the grid.
    spills: vector registers that innermost loops spill to memory, by the
      instructions, not by how often they run.
  """

  cycles: int = 0
  guarded: int = 0
  spills: int = 0

  def __add__(self, other: 'Kernel') -> 'Kernel':
    pairs = zip(*map(dataclasses.astuple, (self, other)), strict=True)
    return Kernel(*map(sum, pairs))

  def __mul__(self, times: int) -> 'Kernel':
    return Kernel(self.cycles * times, self.guarded * times, self.spills)


def read_kernel(folder: str, name: str, product_cycles: int) -> Kernel | None:
  """Returns a kernel of one compilation, None if there is no dump of it.

  The compiler dumps one of several that are the same.

  Args:
    folder: what the compiler dumped to, and nothing but that.
    name: of its instruction in the program.
    product_cycles: of `Chip`.
  """
  pattern = re.compile(rf'\d+-{re.escape(name)}-\d+-final_bundles\.txt')
  files = pathlib.Path(folder).iterdir()
  found = [file for file in files if pattern.fullmatch(file.name)]
  if not found:
    return None
  (file,) = found
  return count(file.read_text(errors='replace'), product_cycles)


@dataclasses.dataclass
class _Loop:
  first: int  # Bundle; that after the last.
  end: int
  trips: int
  is_grid: bool

  def holds(self, other):
    return self.first <= other.first and other.end <= self.end


def count(text: str, product_cycles: int) -> Kernel:
  """Returns the cost of a kernel, by the text of its final bundles."""
  start = r'^ *(?:0x)?[0-9a-f]+ ([A-Z ]*): *((?:> *)*)\{'
  marks = [*re.finditer(start, text, re.M)]
  ends = [mark.start() for mark in marks[1:]] + [len(text)]
  bundles = [text[m.start() : end] for m, end in zip(marks, ends, strict=True)]
  depths = [mark[2].count('>') for mark in marks]
  for i, bundle in enumerate(bundles[1:], 1):  # Slots after the jump back.
    if not depths[i] and re.search(r': *\{\}', bundle):
      depths[i] = depths[i - 1]
  heads = [i for i, mark in enumerate(marks) if 'LB' in mark[1].split()]
  trips = _trips_of_regions(text)
  loops = [_loop(bundles, depths, heads, first, trips) for first in heads]
  regions = _regions(bundles)
  times, guarded = [1] * len(bundles), [False] * len(bundles)
  for loop in loops:
    for i in range(loop.first, loop.end):
      times[i] *= loop.trips
  grid = next((loop for loop in loops if loop.is_grid), None)
  if grid:
    # A grid of G steps is a loop of G + 2: its pipeline is filled and emptied,
    # and the kernel itself is what is left out then.
    inside = [r for r in regions if grid.first < r[0] and r[1] <= grid.end]
    first, end = max(inside, key=lambda r: r[1] - r[0], default=(0, 0))
    regions = [r for r in inside if first < r[0] and r[1] <= end]
    steps = max(grid.trips - 2, 1)
    for i in range(first, end):
      times[i] = times[i] // grid.trips * steps
    for region in regions:
      for i in range(*region):
        times[i] //= 1 if guarded[i] else steps
        guarded[i] = True
  inner = [
      range(loop.first, loop.end)
      for loop in loops
      if not any(loop.holds(o) for o in loops if o is not loop)
  ]
  waits = 0
  for loop in inner:
    units = [0] * 4
    for i in loop:
      for unit in re.findall(r'vmatmul[a-z0-9_.]*mxu(\d)', bundles[i]):
        units[int(unit)] += times[i]
    waits += max(0, max(units) * product_cycles - sum(times[i] for i in loop))
  spills = re.compile(r'vst[a-z.]* \[vmem:\[#allocation\d+_spill')
  return Kernel(
      cycles=sum(times) + waits,
      guarded=sum(n for n, is_so in zip(times, guarded, strict=True) if is_so),
      spills=sum(len(spills.findall(bundles[i])) for n in inner for i in n),
  )


def _loop(bundles, depths, heads, first, trips):
  """Returns the loop that begins with a bundle."""
  depth, end = depths[first], first + 1
  while end < len(bundles) and depths[end] >= depth:
    if depths[end] == depth and end in heads:
      break
    end += 1
  regions = re.findall(r'Start region (\d+)', bundles[first])
  found = [trips[region] for region in regions if region in trips]
  if not found:
    raise ValueError(f'no trips of the loop at bundle {first:#x}')
  is_grid = depth == 1 and 'iteration index, stage' in bundles[first]
  return _Loop(first, end, found[0], is_grid)


def _trips_of_regions(text):
  """Returns how often a loop runs, by the region that its jump leads back to.

  What it tests may stand in another loop, under a condition.
  """
  test = (
      r'(%p\w+) = scmp\.(?:ge|eq)\.s32\.totalorder (?:\(%p\w+\), )?%s\w+, '
      r'(\d+) /\* loop exit test'
  )
  limits = dict(re.findall(test, text))
  jumps = re.findall(r'sbr\.rel \(!(%p\w+)\) target = \$region(\d+)', text)
  return {n: int(limits[p]) for p, n in jumps if p in limits}


def _regions(bundles):
  """Returns the ranges of bundles that a jump forward leaves out."""
  ends = {}
  for i, bundle in enumerate(bundles):
    for number in re.findall(r'Start/End empty region (\d+)', bundle):
      ends[number] = i
  regions = []
  for i, bundle in enumerate(bundles):
    for number in re.findall(r'sbr\.rel \(.*?target = \$region(\d+)', bundle):
      if ends.get(number, 0) > i:
        regions.append((i + 1, ends[number]))
  return regions


def estimate(
    text: str, kernel_of: Callable[[str], Kernel | None]
) -> tuple[int, dict[str, Kernel]]:
  """Returns a program's cycles without its kernels, and these by name.

  Args:
    text: of the compiled program.
    kernel_of: returns a kernel by the name of its instruction, of which the
      numbers at its end are left out in what is returned; or None, for one that
      is the same as another.
  """
  parts, kernels = _computations(text), {}
  calls = re.findall(r'.*"tpu_custom_call".*', text)
  dumped = {call: kernel_of(_name(call)) for call in calls}
  same = {_signature(call): k for call, k in dumped.items() if k}

  def cost(name, times):
    cycles = 0
    for line in parts[name]:
      if found := re.search(r'"estimated_cycles":"(\d+)"', line):
        cycles += int(found[1])
      if '"tpu_custom_call"' in line:
        found = (dumped[line] or same[_signature(line)]) * times
        kind = _kind(line)
        kernels[kind] = kernels.get(kind, Kernel()) + found
      if found := re.search(r' while\(.*body=%?([\w.\-]+)', line):
        trips = _trips(line, parts)
        cycles += cost(found[1], times * trips) * trips
      elif ' call(' in line or ' conditional(' in line:
        cycles += sum(cost(called, times) for called in _called(line))
    return cycles

  return cost('ENTRY', 1), kernels


def _name(call):
  return re.search(r'%?([\w.\-]+) =', call)[1]


def _kind(call):
  return re.sub(r'[.\d]+$', '', _name(call))


def _signature(call):
  """Returns what tells a kernel from those that are not the same."""
  return _kind(call), *re.findall(
      r'\w+\[[\d,]*\]', call.partition('backend_config')[0]
  )


def _called(line):
  """Returns the names of the computations that a call, or a choice, makes."""
  lists = re.findall(
      r'(?:calls|to_apply|\w+_computation|branch_computations)=(\{[^}]*\}|\S+)',
      line,
  )
  return [n for part in lists for n in re.findall(r'[\w.\-]+', part)]


def _computations(text):
  """Returns the lines of each computation, the whole program's as 'ENTRY'."""
  parts, current = {}, None
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
      current = parts.setdefault('ENTRY' if head[1] else head[2], [])
    elif current is not None:
      current.append(line)
  return parts


def _trips(line, parts):
  """Returns how often a loop of the program runs, at the least."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)[1]
  limits = re.findall(
      r's32\[\]\S* constant\((\d+)\)', '\n'.join(parts[condition])
  )
  return max(map(int, limits), default=1)
