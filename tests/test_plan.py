"""A run is planned without devices: what is read, told, looked for, refused."""

import json
import os
import time

import commands
import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_scenes

from awconv_jax import command_line, data, errors
from awconv_jax.compilers import alone, topology
from awconv_jax.data import described
from awconv_jax.tools import plan, planned
from awconv_jax.train import partition, settings, step


@pytest.mark.parametrize(
    'text, chip, shape, slices',
    [
        ('v5e:8x8', 'v5e', '8x8', 1),
        ('2*v5e:16x16', 'v5e', '16x16', 2),
        ('v5p:4x4x4', 'v5p', '4x4x4', 1),
        ('h100x8', 'h100', '8', 1),
        ('4*h100x8', 'h100', '8', 4),
    ],
)
def test_a_topology_is_read(text, chip, shape, slices):
  found = topology.parse(text)
  assert (found.chip, found.shape, found.slices) == (chip, shape, slices)
  assert str(found) == text


@pytest.mark.parametrize(
    'text',
    [
        *('v5e', 'v5ex8', 'h100:2x4', 'v9e:2x2', '0*v5e:2x2', '8x8', ''),
        *('h100x0', 'h100x08', '00*h100x8', 'v5e:0x2'),
    ],
)
def test_no_topology_is_one_line_with_what_there_is(text):
  with pytest.raises(errors.InputError, match='known: v5e:8x8') as caught:
    topology.parse(text)
  assert repr(text) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('config', ['digits', 'digit_scenes'])
def test_what_is_described_is_what_is_read(config):
  path = f'{commands.ROOT}/configs/{config}.py'
  parts = dict(train_split='train[:80]', eval_split='test[:80]')
  made = settings.complete(
      command_line.load_config(path),
      {f'config.data.{key}': split for key, split in parts.items()},
  )
  for train in (True, False):
    key = 'batch_size' if train else 'eval_batch_size'
    batches = data.create(made.data, train=train, batch_size=made[key], seed=0)
    read = next(iter(batches))
    blank = described.blank_batch(made.data, train=train, batch_size=made[key])
    blank = {k: (v.shape, v.dtype) for k, v in blank.items()}
    shapes = {k: (v.shape, v.dtype) for k, v in read.items()}
    # Which of the two canvases a batch lies on differs.
    if config == 'digit_scenes':
      (n, *sides, c), kind = shapes['image']
      shapes['image'] = (n, *sorted(sides), c), kind
    assert {k: blank[k] for k in shapes} == shapes
    split = made.data.train_split if train else made.data.eval_split
    assert described.num_examples(made.data.name, split) >= batches.num_examples


def test_slices_of_splits_have_their_share():
  of = described.num_examples
  assert of('imagenet2012', 'train[:99%]') == round(0.99 * 1_281_167)
  assert of('coco/2017', 'train') == 117_266  # With objects.
  assert of('folder:/birds', 'train') is None is of('digits', 'validation')


@pytest.mark.parametrize('limit', [1, 7, 99, 100, 640, 1000])
@pytest.mark.parametrize('start', [1, 16, 256])
@pytest.mark.parametrize('bend', [1.0, 0.7])
def test_the_largest_fits_and_the_next_does_not(limit, start, bend):
  tried = []

  def fits(number):
    assert number not in tried
    tried.append(number)
    # Not through zero, and the compiler may fold what does not fit.
    share = (50 + number) / (50.5 + limit)
    share = share if share < bend else bend + (share - bend) / 4
    top = (50 + limit) / (50.5 + limit)
    top = top if top < bend else bend + (top - bend) / 4
    return number <= limit, share / (top + 1e-6)

  assert plan.largest(fits, start, 1000) == limit
  assert len(tried) <= 12


def test_where_memory_is_not_known_it_is_halved():
  assert plan.largest(lambda n: (n <= 300, None), 256, 1000) == 300
  assert plan.largest(lambda n: (False, None), 16, 1000) == 0


FOUND = dict(
    memory=dict(
        argument=300, output=200, alias=200, temp=700, generated_code=0
    ),
    needed=1000,
    flops=1e12,
    bytes_accessed=1e9,
    exchanges={
        'all-reduce': dict(number=2, bytes=2**20),
        'all-gather': dict(number=0, bytes=0),
    },
    compile_seconds=60.0,
    kilocycles=1.5e6,
    kernel_kilocycles=0.3e6,
    devices=4,
    hosts=1,
    device_kind='TPU v5 lite',
    compiler='libtpu 1, jax 2',
    total_steps=404,
    state=dict(params=2**20, model_state=100, opt_state=2**20, ema=2**20 + 100),
    beside=100,
    multiply_adds=10**9,
)


@pytest.fixture
def compiler(monkeypatch):
  """Says what was compiled, and takes the place of the compilers."""
  asked = []

  def run(module, chip, request, go_on):
    go_on(plan.ACCEPTED)
    asked.append(request)
    size = request['config']['batch_size']
    if size > 256:  # Of some the compiler does not say what they need.
      return FOUND | dict(memory=None, needed=None if size > 511 else 2**40)
    return FOUND | dict(needed=size * 2**26)

  monkeypatch.setattr(alone, 'check_installed', lambda chip: None)
  monkeypatch.setattr(alone, 'run', run)
  return asked


def plan_digits(*arguments):
  config = f'--config={commands.ROOT}/configs/digits.py'
  return commands.tool('plan', config, *arguments)


def test_the_command_tells_and_writes(compiler, tmp_path):
  output = tmp_path / 'plan.json'
  code, out, err = plan_digits(
      '--topology=v5e:2x2', '--find_batch', f'--output={output}'
  )
  assert (code, err) == (0, '')
  assert {r['program'] for r in compiler} == {'training step', 'evaluation'}
  made = json.loads(output.read_text())
  # 1e9 cycles of 1.5 GHz a step, of 64 images.
  assert made['step_seconds'] == pytest.approx(1.0)
  assert made['images_per_second'] == pytest.approx(64)
  assert made['epoch_seconds'] == pytest.approx(1437 / 64)
  # 404 steps, and 6 times 5 batches.
  assert made['run_seconds'] == pytest.approx(404 + 6 * 5)
  assert made['model_flops'] == 6 * 64 * 10**9
  assert made['checkpoint_bytes'] == 3 * 2**20 + 200
  train, evaluation = made['programs'].values()
  assert train['needed'] == 64 * 2**26 + 100
  assert evaluation['needed'] == 64 * 2**26 + 100
  assert made['largest_batch'] == 248  # 15.75 GiB, a multiple of 4.
  assert made['batches']['248']['fits'] and not made['batches']['252']['fits']
  assert out.count('compiling') == 1
  for line in ('all-gathers', 'fits', 'waiting for memory', 'largest batch'):
    assert line in out


def test_what_does_not_fit_is_told(compiler):
  code, out, err = plan_digits('--topology=v5e:2x2', '--config.batch_size=512')
  assert code == 1 and '| NO ' in out and '| ? ' in out and 'CUDA' not in out
  assert 'accumulation_steps' in err and err.count('\n') == 1


def test_where_no_batch_fits_it_is_told(compiler, monkeypatch):
  large = FOUND | dict(memory=None, needed=None)
  monkeypatch.setattr(alone, 'run', lambda *_: large)
  code, out, _ = plan_digits('--topology=v5e:2x2', '--find_batch')
  assert code == 1 and 'no batch fits, not even the smallest, 4' in out


@pytest.mark.parametrize('ema', [True, False])
def test_each_device_holds_its_share_beside_what_is_evaluated(ema):
  mesh = partition.create_mesh()
  (n := mesh.size) > 1 or pytest.skip('one device')
  kernel = jax.ShapeDtypeStruct((3, 4 * n), jnp.float32)
  params = dict(kernel=kernel, bias=jax.ShapeDtypeStruct((7,), jnp.float32))
  size, bias = 48 * n, 28
  state = step.TrainState(
      step=jax.ShapeDtypeStruct((), jnp.int32),
      params=params,
      model_state={},
      opt_state=(params, params),
      ema=dict(params=params) if ema else None,
  )
  rest = planned.rest_of_state
  whole = 4 + (3 if ema else 2) * (size + bias)
  assert rest(mesh, state, shard=False) == whole
  # The averages are gathered to be evaluated, and their shares stay.
  share = 2 * (size // n + bias) + ema * (size + bias + size // n)
  assert rest(mesh, state, shard=True) == 4 + share


def test_what_is_refused_ends_what_is_compiled(monkeypatch, tmp_path):
  (tmp_path / 'child.py').write_text(
      'import json, os, pathlib, sys, time\n'
      'if "step" in json.loads(sys.argv[1])["program"]:\n'
      '  while not os.path.exists("pid"): time.sleep(0.01)\n'
      '  print(json.dumps(dict(refused="a reason")))\n'
      'else:\n'
      '  pathlib.Path("new").write_text(str(os.getpid()))\n'
      '  os.rename("new", "pid")\n'
      '  time.sleep(60)\n'
  )
  monkeypatch.chdir(tmp_path)  # Which `-m` looks into first.
  monkeypatch.setattr(plan, 'CHILD', 'child')
  start = time.monotonic()
  with pytest.raises(errors.InputError, match='a reason'):
    plan.plan({}, topology.parse('v5e:2x2'), 64, 32)
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)
  assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    'answer, arguments, said',
    [
        (dict(refused='batch'), (), 'error: batch\n'),
        (dict(failed=-11, said=''), (), 'by signal SIGSEGV at the '),
        (
            dict(failed=1, said='E: x'),
            (),
            ' by code 1 at the ',
        ),
        ({}, ('--topology=v5e',), "unknown topology 'v5e'"),
        ({}, ('--config.data.name=folder:/x',), '--num_examples=... is wanted'),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    answer, arguments, said, compiler, monkeypatch
):
  monkeypatch.setattr(alone, 'run', lambda *_: answer)
  code, _, err = plan_digits('--topology=v5e:2x2', *arguments)
  assert code == 1 and said in err and err.count('\n') == 1


def test_a_compiler_that_is_not_there_is_one_line(monkeypatch):
  monkeypatch.setattr(alone.importlib.util, 'find_spec', lambda name: None)
  code, _, err = plan_digits('--topology=v5e:2x2')
  assert code == 1 and "pip install 'awconv_jax[tpu]'" in err
  assert err.count('\n') == 1


def with_compiler(place):
  """Returns a topology; without its compiler the test is left out."""
  place = topology.parse(place)
  try:
    alone.check_installed(place.chip)
  except errors.InputError as error:
    pytest.skip(str(error))
  return place


@pytest.mark.accelerators
@pytest.mark.parametrize('place', ['v5e:2x2', '2*v5e:2x2', 'h100x8'])
def test_a_run_is_compiled(place):
  place = with_compiler(place)
  config = settings.complete(tiny.get_config()).to_dict()
  config |= dict(batch_size=16, eval_batch_size=16)
  made = plan.plan(json.loads(json.dumps(config)), place, 64, 32)
  assert made['fits']
  train, evaluation = made['programs'].values()
  gathered, reduced = (
      train['exchanges'][f'all-{kind}'] for kind in ('gather', 'reduce')
  )
  # Between slices XLA sends a share of what is reduced, and puts it together.
  assert (gathered['number'] == 0) == (
      place.slices == 1 or place.chip == 'h100'
  )
  assert gathered['bytes'] < reduced['bytes']
  # Its state is given back in place, and is what a checkpoint holds.
  assert 0 < train['memory']['alias'] >= made['checkpoint_bytes']
  assert train['needed'] > evaluation['needed']
  with pytest.raises(errors.InputError, match='config.batch_size=1 must be'):
    plan.compile_program(config | dict(batch_size=1), place, plan.STEP, 64)


@pytest.mark.accelerators
def test_a_detector_is_compiled():
  place = with_compiler('v5e:2x2')
  config = settings.complete(tiny_scenes.get_config()).to_dict()
  made = plan.plan(json.loads(json.dumps(config)), place, 24, 19)
  assert made['fits'] and made['step_seconds'] > 0
