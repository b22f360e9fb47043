r"""Whether a run fits TPUs or GPUs, and how fast it will be; none are needed.

  python -m awconv_jax.tools.plan --config=configs/imagenet.py \
      --config.model.dtype=bfloat16 --topology=v5e:8x8
  python -m awconv_jax.tools.plan --config=configs/imagenet.py --topology=h100x8

Compiles the run's own training step and evaluation by the real compiler, which
needs no device: pip install 'awconv_jax[tpu]', or [cuda13] for GPUs. Each
keeps a core busy, from a minute to many with the size of the network. No data
are read. Topologies are slices of v5e, v6e (8x8) and v5p (4x4x4), several of
them (2*v5e:16x16), and GPUs of a machine or of several (h100x8, 4*h100x8; a100,
l4).

Memory is the compiler's own analysis. Time is an estimate for TPU alone: XLA's
of its fusions, and the instructions of our kernels. Waiting for memory, what
chips exchange and the host are not counted, so a step takes longer.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import json
import math
import signal
import threading
from typing import Any

from absl import flags

from awconv_jax import command_line, places, text_table
from awconv_jax.compilers import alone, topology
from awconv_jax.data import described
from awconv_jax.errors import InputError, ReportedError
from awconv_jax.options import MOST
from awconv_jax.text_table import duration, mib

FLAGS = flags.FLAGS
STEP, EVALUATION = 'training step', 'evaluation'
CHILD = 'awconv_jax.tools.planned'
ACCEPTED = 'accepted'  # It prints that before it compiles.
_NOT_COUNTED = (
    'Time is an estimate and a lower bound: XLA says what its fusions take, our'
    ' kernels count an instruction a cycle. Not counted: waiting for memory,'
    ' what chips exchange, and the host; nothing was measured on a TPU.'
)
_NO_TIME = 'CUDA has no estimate of time: compile for TPU, or measure a run.'
_TOO_LARGE = (
    'It does not fit: take a smaller --config.batch_size (--find_batch says'
    ' which), more chips, or --config.accumulation_steps.'
)


def compile_program(
    config: Mapping[str, Any],
    place: topology.Topology,
    program: str,
    num_examples: int,
    go_on: Callable[[str], bool] = lambda said: True,
) -> dict[str, Any]:
  """Returns what `planned` says of a program, and whether it 'fits'.

  Args:
    config: of the run, complete.
    place: what it is compiled for.
    program: `STEP` or `EVALUATION`.
    num_examples: to train on.
    go_on: see `alone.run`.

  Raises:
    ReportedError: the config or the topology cannot be, or the compiler fails.
  """
  request = dict(
      config=config,
      topology=str(place),
      program=program,
      num_examples=num_examples,
  )
  found = alone.run(CHILD, place.chip, request, go_on)
  if refused := found.get('refused'):
    raise InputError(*refused.split('\n'))
  if 'failed' in found:
    code, said = found['failed'], found['said']
    name = (
        f'signal {signal.Signals(-code).name}' if code < 0 else f'code {code}'
    )
    extra = alone.CHIPS[place.chip].extra
    raise ReportedError(
        f'the compiler for {place} ended by {name} at the {program}'
        f'{": " * bool(said)}{said}; another version may do: '
        f"pip install --upgrade 'jax[{extra}]'"
    )
  most = alone.CHIPS[place.chip].usable
  needed = found['needed'] and found['needed'] + found['beside']
  fits = found['memory'] is not None and needed <= most
  return found | dict(needed=needed, usable=most, fits=fits)


def largest(
    fits: Callable[[int], tuple[bool, float | None]],
    start: int,
    most: int,
) -> int:
  """Returns the largest number that fits, such that the next does not; or 0.

  Few are tried: memory grows about linearly, and a line through two numbers
  says which to try next; halves where it does not help.

  Args:
    fits: says whether a number fits, and what share of the memory it takes, if
      that is known.
    start: the first to try.
    most: the largest that there may be.
  """
  tried: dict[int, float | None] = {}
  low, high, number, step = 0, most + 1, start, 1
  while True:
    fit, tried[number] = fits(number)
    low, high = (number, high) if fit else (low, number)
    if high - low <= 1:
      return low
    known = [(n, share) for n, share in sorted(tried.items()) if share]
    guess = number
    if len(known) > 1:
      (a, x), (b, y) = min(
          zip(known, known[1:], strict=False), key=lambda p: abs(1 - p[0][1])
      )
      guess = a + (1 - x) * (b - a) / (y - x) if y > x else math.inf
    elif known:
      guess = number / known[0][1]
    if len(tried) > 3 and high <= most:
      guess = (low + high) / 2
    elif fit and guess <= low:
      guess, step = low + step, 2 * step
    number = int(min(max(guess, low + 1), high - 1))


def find_batch(
    config: Mapping[str, Any],
    place: topology.Topology,
    num_examples: int,
    first: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the 'largest_batch' that fits, 0 if none, and 'batches' tried.

  Prints all. `first` is what `compile_program` returned of the config's own.
  """
  unit = first['devices'] * config['accumulation_steps']
  tried = {config['batch_size']: first}

  def fits(number):
    size = number * unit
    if size not in tried:
      changed = {**config, 'batch_size': size}
      tried[size] = compile_program(changed, place, STEP, num_examples)
    found = tried[size]
    word = 'fits' if found['fits'] else 'does not fit'
    print(
        f'batch {size:,}: {mib(found["needed"])} MiB, {word}',
        flush=True,
    )
    return found['fits'], found['needed'] and found['needed'] / found['usable']

  start = config['batch_size'] // unit
  best = largest(fits, start, max(num_examples // unit, start))
  print(
      f'largest batch that fits: {best * unit:,}'
      if best
      else f'no batch fits, not even the smallest, {unit:,}'
  )
  names = ('needed', 'fits')
  return dict(
      largest_batch=best * unit,
      batches={
          size: {name: found[name] for name in names}
          for size, found in sorted(tried.items())
      },
  )


def times(
    config: Mapping[str, Any],
    place: topology.Topology,
    num_examples: int,
    eval_examples: int | None,
    found: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns seconds, and images a second; {} where there are no estimates."""
  cycles = {k: program.get('kilocycles') for k, program in found.items()}
  if not cycles[STEP]:
    return {}
  clock, step = alone.CHIPS[place.chip].clock * 1e6, found[STEP]
  seconds = cycles[STEP] / clock
  rate = config['batch_size'] / seconds
  of_epoch = num_examples / rate
  evaluation, run = None, step['total_steps'] * seconds
  if cycles[EVALUATION] and eval_examples:
    batches = math.ceil(eval_examples / config['eval_batch_size'])
    evaluation = batches * cycles[EVALUATION] / clock
    often = config['num_epochs'] / config['eval_every_epochs']
    run += max(round(often), 1) * evaluation
  return dict(
      step_seconds=seconds,
      kernels_share=step['kernel_kilocycles'] / cycles[STEP],
      images_per_second=rate,
      images_per_second_per_host=rate / step['hosts'],
      epoch_seconds=of_epoch,
      evaluation_seconds=evaluation,
      run_seconds=run,
  )


def plan(
    config: Mapping[str, Any],
    place: topology.Topology,
    num_examples: int,
    eval_examples: int | None,
) -> dict[str, Any]:
  """Compiles both programs at once, and returns what there is to say of a run.

  Raises:
    ReportedError: see `compile_program`; the other program is given up then.
  """
  ended = threading.Event()
  once = iter(['compiling; large networks take many minutes'])

  def go_on(said):
    for line in once if said.startswith(ACCEPTED) else ():
      print(line, flush=True)
    return not ended.is_set()

  with futures.ThreadPoolExecutor() as pool:
    waiting = {
        program: pool.submit(
            compile_program, config, place, program, num_examples, go_on
        )
        for program in (STEP, EVALUATION)
    }
    try:
      futures.wait(waiting.values(), return_when=futures.FIRST_EXCEPTION)
      for one in waiting.values():
        if one.done():
          one.result()
    finally:
      ended.set()
  found = {program: one.result() for program, one in waiting.items()}
  step, batch = found[STEP], config['batch_size']
  return dict(
      config=config,
      topology=str(place),
      programs=found,
      fits=all(program['fits'] for program in found.values()),
      # Backward takes twice of forward, and a multiply-add is two.
      model_flops=6 * step['multiply_adds'] * batch,
      checkpoint_bytes=sum(step['state'].values()),
      **times(config, place, num_examples, eval_examples, found),
  )


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:,.4g}'


def _memory(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Yields rows of the memory of a chip, a column for each program."""
  named = {
      'argument': 'arguments: state and batch',
      'output': 'outputs',
      'alias': 'of these in the place of arguments',
      'temp': 'temporaries',
      'generated_code': 'the program itself',
  }
  for kind, name in named.items():
    yield {'MiB of a chip': name} | {
        program: mib(one['memory'] and one['memory'][kind])
        for program, one in found.items()
    }
  for key, name in dict(
      beside='beside it: next batch; rest of state',
      needed='needed at once',
      usable='there are',
  ).items():
    yield {'MiB of a chip': name} | {k: mib(v[key]) for k, v in found.items()}
  yield {'MiB of a chip': 'fits'} | {
      k: 'yes' if v['fits'] else 'NO' for k, v in found.items()
  }


def _rows(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields what else there is to say, and its value."""
  step, config = made['programs'][STEP], made['config']
  for kind, one in step.get('exchanges', {}).items():
    size = f'{one["bytes"] / 2**20:,.1f} MiB'
    name = f'{kind}s in a step, what they give a chip'
    yield name, f'{one["number"]}, {size}'
  chips = step['devices']
  yield 'model TFLOP of a step, a chip', _number(
      made['model_flops'] / chips / 1e12
  )
  flops, moved = step.get('flops'), step.get('bytes_accessed')
  yield "XLA's TFLOP of a step, a chip, without our kernels", _number(
      flops and flops / 1e12
  )
  yield "XLA's GB that a step reads and writes, a chip", _number(
      moved and moved / 1e9
  )
  checkpoint = made['checkpoint_bytes'] / 2**20
  kept = config['checkpoints_to_keep']
  yield f'checkpoint, of which {kept} are kept', f'{checkpoint:,.0f} MiB'
  if 'step_seconds' in made:
    yield 'step, at the least', duration(made['step_seconds'])
    yield 'of it in our kernels', f'{made["kernels_share"]:.0%}'
    yield 'images/s, at most', _number(made['images_per_second'])
    yield (
        f'images/s that each of {step["hosts"]} hosts has to read',
        _number(made['images_per_second_per_host']),
    )
    yield 'epoch, at the least', duration(made['epoch_seconds'])
    yield 'evaluation, at the least', duration(made['evaluation_seconds'])
    yield 'run, at the least', duration(made['run_seconds'])


def report(made: Mapping[str, Any]) -> str:
  """Returns what `plan` returned as text."""
  step, config = made['programs'][STEP], made['config']
  rows = [dict(what=what, value=value) for what, value in _rows(made)]
  chips, batch = step['devices'], config['batch_size']
  seconds = max(p['compile_seconds'] for p in made['programs'].values())
  head = (
      f'{config["model"]["name"]} on {config["data"]["name"]}, '
      f'{made["topology"]}: {chips} of {step["device_kind"]}, '
      f'{step["hosts"]} host(s); batches of {batch:,}, {batch / chips:g} a '
      f'chip; {step["total_steps"]:,} steps; compiled in {duration(seconds)} '
      f'by {step["compiler"]}'
  )
  memory = text_table.make(list(_memory(made['programs'])))
  said = []
  if 'step_seconds' in made:
    said.append(_NOT_COUNTED)
  elif step['memory']:
    said.append(_NO_TIME)
  return '\n'.join([head, memory, text_table.make(rows), *said])


def _examples(config: Any, split: str, given: int | None) -> int | None:
  return given or described.num_examples(config.data.name, config.data[split])


@command_line.ended_by_sigterm()  # So that no compiler is left behind.
def main() -> None:
  """Plans as the flags say; InputError, at the end, if the run does not fit."""
  config = command_line.read_config()
  if config is None or not FLAGS.topology:
    raise InputError(
        '--config or --topology is missing, such as --config=imagenet '
        '--topology=v5e:8x8'
    )
  place = topology.parse(FLAGS.topology)
  alone.check_installed(place.chip)
  if FLAGS.output:
    command_line.check_output(FLAGS.output)
  num_examples = _examples(config, 'train_split', FLAGS.num_examples)
  if num_examples is None:
    raise InputError(
        f'--num_examples=... is wanted: how many to train on split '
        f'{config.data.train_split!r} of {config.data.name!r} has'
    )
  eval_examples = _examples(config, 'eval_split', FLAGS.num_eval_examples)
  values = json.loads(json.dumps(config.to_dict()))
  made = plan(values, place, num_examples, eval_examples)
  print(report(made), flush=True)
  if FLAGS.find_batch:
    made |= find_batch(values, place, num_examples, made['programs'][STEP])
  if FLAGS.output:
    text = json.dumps(made, indent=2)
    places.at(FLAGS.output).write_text(f'{text}\n')
  if not made['fits']:
    raise InputError(_TOO_LARGE)


if __name__ == '__main__':
  command_line.define_config('Of the run.')
  flags.DEFINE_string('topology', None, f'Such as {topology.KNOWN}.')
  flags.DEFINE_bool(
      'find_batch',
      False,
      'Also find the largest batch that fits, by compiling 4 to 8 steps more.',
  )
  text = 'To train on; as published where not given.'
  flags.DEFINE_integer('num_examples', None, text, 1, MOST)
  text = 'To evaluate on; as published where not given.'
  flags.DEFINE_integer('num_eval_examples', None, text, 1, MOST)
  command_line.define_path('output', 'JSON file to write all of it to.')
  command_line.run(main)
