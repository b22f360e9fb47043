"""The benchmarks measure what they say, and refuse to time wrong results."""

import functools
import itertools
import json
import pathlib
import types

import commands
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from awconv_jax import errors
from awconv_jax.compilers import exchanges
from awconv_jax.ops import aw_conv
from awconv_jax.train import partition
from benchmarks import __main__ as command
from benchmarks import data, evaluator, network, op, timing


@pytest.fixture
def tiny(monkeypatch):
  shapes = op.SHAPES | dict(dense=[op.Shape(8, 8, 4)])
  shapes['grouped'] = [op.Shape(8, 16, 5, stride=2, groups=2)]
  monkeypatch.setattr(op, 'SHAPES', shapes)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (partition.DATA_AXIS,))
  monkeypatch.setattr(partition, 'create_mesh', lambda: mesh)
  small = dict(stage_sizes=(1,), width=8, aw_stages=(1,), stem='cifar')
  create = functools.partial(network.models.create, **small)
  monkeypatch.setattr(network.models, 'create', create)


OP = ['op', '--batches=2', '--expansion=4', '--seconds=0']
BOTH = '--kinds=dense,grouped'
NETWORK = ['network', '--model=resnet18', '--batches=2', '--seconds=0']
NETWORK += ['--side=8']


def run(arguments, tmp_path):
  """Runs the command in this process; returns its rows."""
  command.main([*arguments, f'--output={tmp_path}/table'])
  assert (tmp_path / 'table.png').stat().st_size > 5000
  rows = json.loads((tmp_path / 'table.json').read_text())
  for row in rows:
    assert (row['backend'], row['jax']) == ('cpu', jax.__version__)
    assert row['seed'] == 0 and row['device']
  return rows


@pytest.mark.slow
def test_the_operation(tiny, tmp_path, quick_compiles):
  rows = run([*OP, BOTH, '--implementations=auto,map'], tmp_path)
  assert [(r['direction'], r['side'], r['implementation']) for r in rows] == [
      (direction, side, name)
      for direction in ('forward', 'both')
      for side in (4, 5)
      for name in ('plain', 'auto', 'map')
  ]
  for row in rows:
    assert row['milliseconds'] > 0 and row['temporary_mib'] >= 0
    assert (row['ratio'] == 1) == (row['implementation'] == 'plain')
    assert row['calls'] == 1 and row['error'] < 1e-4


@pytest.mark.slow
def test_a_network(tiny, tmp_path, quick_compiles):
  flags = ['--attentions=se', '--implementations=im2col']
  rows = run([*NETWORK, *flags], tmp_path)
  # What AW is compared with is measured if asked for only.
  assert [r['variant'] for r in rows] == ['plain', 'se', 'aw:im2col']
  for row in rows:
    assert row['images_per_second'] * row['milliseconds'] == pytest.approx(2e3)
    assert (row['all_gathers'], row['devices']) == (0, 1)
  assert 0 < rows[2]['error'] < network.TOLERANCES['float32']


def test_reading(tiny, tmp_path, monkeypatch, quick_compiles):
  monkeypatch.setattr(data.importlib.util, 'find_spec', lambda name: None)
  arguments = ['data', '--batches=4', '--images=20', '--seconds=0', '--side=32']
  rows = run(arguments, tmp_path)
  assert [r['consumer'] for r in rows] == ['mean', 'training']
  for row in rows:
    assert row['consumer_ms'] > 0 and 0 <= row['data_wait'] <= 1


def test_evaluators_agree_on_the_twelve_numbers(tmp_path, monkeypatch):
  arguments = ['evaluator', '--images=30', '--detections=9', '--classes=3']
  rows = run(arguments, tmp_path)
  assert [r['evaluator'] for r in rows] == ['pycocotools', 'faster-coco-eval']
  assert rows[0]['AP'] == pytest.approx(rows[1]['AP'], abs=1e-12)
  assert 0.02 < rows[0]['AP'] < 0.9
  wrong = dict.fromkeys(evaluator.coco.METRICS, 0.5)
  monkeypatch.setitem(
      evaluator.EVALUATORS, 'faster-coco-eval', lambda *_: wrong
  )
  with pytest.raises(
      errors.ReportedError, match='AP is 0.5 by faster-coco-eval, and'
  ):
    run(arguments, tmp_path)


@pytest.mark.parametrize(
    'arguments, names, reference',
    [
        (OP, 'im2col', 'map'),
        pytest.param(NETWORK, 'im2col', 'aw:map', marks=pytest.mark.slow),
        pytest.param(
            NETWORK, 'im2col,vmap,map', 'aw:vmap', marks=pytest.mark.slow
        ),
    ],
)
def test_a_wrong_form_is_not_timed(
    tiny, monkeypatch, tmp_path, quick_compiles, arguments, names, reference
):
  right = aw_conv.IMPLEMENTATIONS['im2col']
  wrong = lambda x, kernel, maps, *rest: right(x, kernel, -maps, *rest)  # noqa: E731
  monkeypatch.setitem(aw_conv.IMPLEMENTATIONS, 'im2col', wrong)
  monkeypatch.delattr(timing, '_time_in_turn')
  with pytest.raises(
      errors.ReportedError, match=f'l differs from {reference} '
  ):
    run([*arguments, f'--implementations={names}'], tmp_path)


def measure(programs, reference=None, **options):
  options = dict(tolerance=1e-4, seconds=0.0) | options
  return timing.measure(programs, reference=reference or {}, **options)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_results_that_say_nothing_are_refused(value):
  results = np.ones(3), np.full(3, value)
  program = timing.Program(run=lambda turn, calls: results, fetch=tuple)
  with pytest.raises(errors.ReportedError, match='differs from plain by nan'):
    measure({'plain': lambda: program})


@pytest.fixture
def clock(monkeypatch):
  """Time that passes only when it is told to, and what happened meanwhile."""
  clock = types.SimpleNamespace(now=0.0, calls=[])

  def program(name, cost):
    def run(turn, calls=1):
      clock.calls.append((name, turn, calls))
      clock.now += cost * calls
      return np.ones(1)

    return lambda: timing.Program(run=run, fetch=lambda result: result)

  clock.program = program
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock.now)
  monkeypatch.setattr(data.time, 'monotonic', lambda: clock.now)
  return clock


def test_what_is_timed_is_warm_on_other_inputs_and_not_too_often(clock):
  measured = measure(
      {'quick': clock.program('q', 0.4), 'slow': clock.program('s', 5.0)},
      seconds=1.0,
  )
  turns = [('q', 0), ('s', 0), ('q', 1), ('q', 1), ('s', 1)]
  turns += [('q', 2), ('q', 2), ('q', 3), ('q', 3)]
  assert clock.calls == [(*turn, 1) for turn in turns]
  assert measured['slow'].milliseconds == pytest.approx(5e3)


@pytest.mark.parametrize('backend, together', [('cpu', 1), ('gpu', 40)])
def test_short_calls_are_timed_together_off_cpu(
    clock, monkeypatch, backend, together
):
  monkeypatch.setattr(timing.jax, 'default_backend', lambda: backend)
  found = measure({'plain': clock.program('a', 0.005)})['plain']
  assert clock.calls[-1] == ('a', 1, together)
  assert found.columns(found)['calls'] == together
  assert found.milliseconds == pytest.approx(5)


def test_calls_together_are_all_computed():
  inputs = [(jnp.full(3, i),) for i in range(2)]
  program = timing.compile_jax(jax.jit(lambda x: 2 * x), inputs)
  np.testing.assert_array_equal(program.run(0, calls=4), [2, 2, 2])


def test_what_others_are_compared_with_comes_first(clock, capsys):
  programs = {n: clock.program(n, 0.1) for n in ('b', 'a')}
  assert measure(programs, {'b': 'a'}, untimed={'a'}).keys() == {'b'}
  assert [name for name, *_ in clock.calls] == ['a', 'b', 'b']

  def fail():
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory\nand more')

  programs = {'plain': clock.program('plain', 1.0), 'map': fail}
  assert measure(programs, {'map': 'plain'}).keys() == {'plain'}
  line = 'left out: map cannot run here: RESOURCE_EXHAUSTED: memory\n'
  assert capsys.readouterr().out == line
  with pytest.raises(errors.ReportedError, match='memory; others are measured'):
    measure({'vmap': fail, 'map': programs['plain']}, {'map': 'vmap'})


def test_gradients_are_compared_one_by_one():
  found, swapped = (
      network.fetch(((None, {'a': np.array([a]), 'b': np.array([[b]])}), 1.0))
      for a, b in ((3, 4), (4, 3))
  )
  # Of all together the norm is the same.
  error = timing.relative_error(swapped, found)
  assert error == pytest.approx(2**0.5 / 5)


def test_exchanges_of_devices_are_counted():
  mesh = partition.create_mesh()
  x = jax.device_put(jnp.ones((8, 2)), partition.over_batch(mesh))
  whole = partition.replicated(mesh)
  for function, count in ((lambda x: 2 * x, 1), (lambda x: x.sum(), 0)):
    text = jax.jit(function, out_shardings=whole).lower(x).compile().as_text()
    assert exchanges.count(text, 'all-gather') == count
  start = ' %g = (f32[1], f32[8]) all-gather-start(%p), op_name="all-gather"'
  text = f'{start}\n %d = f32[8] all-gather-done(%g)'
  assert exchanges.count(text, 'all-gather') == 1


@pytest.mark.parametrize('dtype', op.TOLERANCES)
def test_pytorch_beside_it(tiny, tmp_path, quick_compiles, dtype):
  pytest.importorskip('torch')
  arguments = [*OP, BOTH, f'--dtype={dtype}', '--implementations=torch']
  rows = run(arguments, tmp_path)
  for plain, grouped in zip(rows[1::3], rows[2::3], strict=True):
    assert plain['implementation'] == 'torch:plain' and plain['ratio'] == 1
    times = grouped['milliseconds'] / plain['milliseconds']
    assert grouped['ratio'] == pytest.approx(times)
    assert grouped['error'] < op.TOLERANCES[dtype]


def test_the_images_have_the_sizes_that_are_written_down(tmp_path):
  files = [pathlib.Path(f) for f in data.write_jpegs(tmp_path, 20, 0)]
  for name, size in zip(files, data.SIZES, strict=True):
    with Image.open(name) as image:
      assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', size)
  assert 95e3 < np.mean([file.stat().st_size for file in files]) < 125e3


@pytest.mark.parametrize(
    'reading, computing, waited', [(0.02, 0.0, 1.0), (0.01, 0.03, 0.25)]
)
def test_waiting_is_what_the_loop_spends_without_a_batch(
    clock, reading, computing, waited
):
  given = []  # By each that was opened, and is closed.

  def batches():
    number = 0
    try:
      while True:
        number += 1
        clock.now += reading
        yield {'image': np.ones(1)}
    finally:
      given.append(number)

  def consume(batch):
    clock.now += computing
    return batch['image']

  pipelines = 'ours', data.TF
  cases = [data.Case(p, 'mean', batches, 7, consume) for p in pipelines]
  rows = list(data.measure(cases, batch=4, side=8, seconds=0.6))
  # Twice what may be ready is taken before anything is timed.
  assert len(given) == 2 * data.ROUNDS and min(given) >= 2 * 7 + 2
  want = dict(data_wait=waited, images_per_second=4 / (reading + computing))
  want |= dict(consumer_ms=1e3 * computing, ratio=1)
  for row in rows:
    assert {name: row[name] for name in want} == pytest.approx(want)


def test_tf_data_gives_what_it_should(tmp_path):
  pytest.importorskip('tensorflow')
  files = data.write_jpegs(str(tmp_path), 20, 0)
  batches = itertools.islice(data.tf_batches(files, 10, 48, 0), 4)
  images = np.concatenate([batch['image'] for batch in batches])
  assert images.shape == (40, 48, 48, 3) and images.dtype == np.float32
  # Normalised, and by the right channels: these photographs are not grey.
  pixels = (images * data._STD + data._MEAN).mean((0, 1, 2))
  decoded = [np.asarray(Image.open(f)).mean((0, 1)) for f in files]
  np.testing.assert_allclose(pixels, np.mean(decoded, 0), atol=25)


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], ['subject']),
        (['op', '--implementations=mpa'], ["'mpa'", "'map'"]),
        (['op', '--implementations=map,fused'], ["'fused' is no m", 'gpu']),
        (['op', '--batches=x'], ['--batches', 'int', "'x'"]),
        (['network', '--side=0'], ['--side', "'0' must be from 1 to"]),
        (['network', '--batches=3'], ['--batches=3', '8 devices']),
        (['data', '--images=3'], ['--images=3 are less than']),
        (['data', '--interpolation=aera'], ["did you mean 'area'"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    arguments, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises((SystemExit, errors.InputError)) as caught:
    command.main(arguments)
  assert '\n' not in str(caught.value)
  assert all(word in str(caught.value) for word in words), caught.value
  assert not list(tmp_path.iterdir())


def test_help_says_what_each_option_is(capsys):
  with pytest.raises(SystemExit):
    command.main(['op', '--help'])
  words = ' '.join(capsys.readouterr().out.split())
  assert 'batch sizes. (default: (8, 32))' in words
  assert 'of all inputs. (default: 0)' in words


@pytest.mark.slow
def test_the_command_needs_little_more_than_jax_and_flax(tmp_path):
  """Machines with an accelerator may hold nothing else."""
  absent = ('clu', 'cv2', 'ml_collections', 'matplotlib', 'pydantic', 'torch')
  code, out, err = commands.run(
      '-c',
      'import sys\n'
      f'sys.modules.update(dict.fromkeys({absent}))\n'
      'from benchmarks import __main__ as command, op\n'
      'op.SHAPES["dense"] = (op.Shape(8, 8, 4),)\n'
      f'command.main({[*OP, "--implementations=map"]} + '
      f'["--output={tmp_path}/table", "--cpu_devices=1"])',
  )
  assert code == 0, err
  assert 'no plot' in out and '| map ' in out
  assert len(json.loads((tmp_path / 'table.json').read_text())) == 4
