"""The benchmark measures what it says, and refuses to time wrong results."""

import dataclasses
import functools
import json
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax import complexity, errors, models
from awconv_jax.models import resnet
from awconv_jax.ops import aw_conv
from awconv_jax.train import partition
from benchmarks import (
    attention_branch,
    collectives,
    model,
    network_step,
    op,
    report,
    roofline,
    timing,
    torch_grouped,
    traffic,
)

TOOL = ('-m', 'benchmarks')


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setattr(op, 'SHAPES', ((8, 4),))
  return dict(batches=[2], expansion=4, dtype='float32', seconds=0.0)


def test_the_operation(tiny):
  rows = list(op.run(implementations=['auto', 'map'], **tiny))
  assert [(r.direction, r.implementation) for r in rows] == [
      (direction, name)
      for direction in ('forward', 'both')
      for name in ('plain', 'vmap', 'auto', 'map')
  ]
  for row in rows:
    assert row.milliseconds > 0 and row.temporary_mib >= 0 and row.calls == 1
    assert row.gflop_per_second == pytest.approx(
        1e3 * row.gflop / row.milliseconds
    )
    assert (row.ratio == 1) == (row.implementation == 'plain')
    assert row.error < 1e-4
  # 2 samples, 4x4 positions, 3 * 3 * 8 * 8 weights; three times with backward.
  assert rows[0].gflop == pytest.approx(2e-9 * 2 * 16 * 576)
  assert rows[4].gflop == pytest.approx(3 * rows[0].gflop)
  # Input and output of 2 * 4 * 4 * 8 values, and the kernel.
  assert rows[0].moved_mib == pytest.approx(4 * (2 * 256 + 576) / 2**20)
  lines = op.summarize(rows)
  assert len(lines) == 6 and lines[0].startswith('forward, vmap: ratio ')


def test_the_operation_with_a_stride(tiny, monkeypatch):
  monkeypatch.setattr(op, 'STRIDED', ((8, 5, 2),))
  rows = list(op.run(implementations=['map'], strided=True, **tiny))
  assert [r.stride for r in rows] == 2 * (3 * [1] + 3 * [2])
  assert rows[3].side == 5 and max(r.error for r in rows) < 1e-4
  # Of 5 rows and columns three are seen.
  assert rows[3].gflop == pytest.approx(2e-9 * 2 * 9 * 576)


def test_the_form_for_gpu_is_not_timed_elsewhere():
  code, _, err = commands.run(*TOOL, 'op', '--implementations=map,fused')
  assert code == 1
  assert err == (
      "error: --implementations=map,fused: 'fused' is for GPU; on 'cpu' it is "
      'no measure, leave it out\n'
  )


@pytest.fixture
def nothing_timed(monkeypatch):
  monkeypatch.setattr(
      timing, '_time_in_turn', lambda *args: pytest.fail('it was timed')
  )


def make_wrong(monkeypatch, name):
  right = aw_conv.IMPLEMENTATIONS[name]

  def wrong(x, kernel, attention, *, residual, **options):
    return right(x, kernel, attention, residual=not residual, **options)

  monkeypatch.setitem(aw_conv.IMPLEMENTATIONS, name, wrong)


def test_a_wrong_form_is_not_timed(tiny, monkeypatch, nothing_timed):
  make_wrong(monkeypatch, 'map')
  with pytest.raises(errors.ReportedError, match='map differs from'):
    list(op.run(implementations=['map'], **tiny))


@pytest.fixture
def tiny_network(monkeypatch):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (partition.DATA_AXIS,))
  monkeypatch.setattr(partition, 'create_mesh', lambda: mesh)
  fields = dict(
      block='basic', stage_sizes=(1,), width=8, aw_stages=(1,), stem='cifar'
  )
  tiny = functools.partial(resnet.ResNet, **fields)
  monkeypatch.setitem(models.MODELS, 'tiny', tiny)
  return dict(name='tiny', batches=[2], side=8, dtype='float32', seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    'variants, reference',
    [
        (['aw:im2col'], 'aw:map'),
        (['aw:im2col', 'aw:vmap', 'aw:map'], 'aw:vmap'),
    ],
)
def test_a_network_of_a_wrong_form_is_not_timed(
    variants, reference, tiny_network, monkeypatch, nothing_timed
):
  make_wrong(monkeypatch, 'im2col')
  words = f'aw:im2col: loss or gradients differ from those of {reference} '
  with pytest.raises(errors.ReportedError, match=words):
    list(model.run(variants=variants, **tiny_network))


@pytest.mark.slow
def test_what_a_network_is_compared_with_is_no_row(
    tiny_network, monkeypatch, quick_compiles
):
  right = aw_conv.IMPLEMENTATIONS['im2col']

  def nearly(*args, **options):
    return (1 + 1e-3) * right(*args, **options)

  monkeypatch.setitem(aw_conv.IMPLEMENTATIONS, 'im2col', nearly)
  rows = list(model.run(variants=['se', 'aw:im2col'], **tiny_network))
  variants = [r.variant for r in rows]
  assert variants == ['plain', 'se', 'aw:im2col', 'aw:branch']
  assert rows[0].error == rows[1].error == 0
  assert 0 < rows[2].error < model.TOLERANCES['float32']
  assert model.summarize(rows)[0].endswith(' % of aw:im2col, batch 2')


def test_gradients_are_compared_one_by_one():
  a, b = np.array([3.0]), np.array([[4.0]])
  found, swapped = (
      network_step.NetworkStep.fetch((None, state, 1.0))
      for state in ({'a': a, 'b': b}, {'a': b, 'b': a})
  )
  np.testing.assert_array_equal(found['grads'], [3, 4])
  # Of all together the norm is the same.
  assert timing.norm([a, b]) == timing.norm([b, a]) == 5
  error = timing.relative_error(swapped, found)
  assert error == pytest.approx(2**0.5 / 5)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_results_that_say_nothing_are_refused(value):
  """Zero to zero compares as equal, and NaN to anything as not."""
  ready = {
      'empty': timing.Ready(
          run=lambda turn: (np.ones(3), np.full(3, value)), fetch=tuple
      )
  }
  with pytest.raises(errors.ReportedError, match='a result of empty'):
    timing.measure(ready, seconds=0, check={})


def _recorded(calls, name, cost):
  """Returns a function that notes its calls, on a clock of its own."""

  def run(turn):
    calls.append((name, turn))
    calls.now += cost
    return 1.0

  return timing.Ready(run=run, fetch=lambda result: result)


def test_what_is_timed_is_warm_on_other_inputs_and_not_too_often(monkeypatch):
  class Calls(list):
    now = 0.0

  calls = Calls()
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: calls.now)
  measured = timing.measure(
      {'quick': _recorded(calls, 'q', 0.4), 'slow': _recorded(calls, 's', 5.0)},
      seconds=1.0,
      check={},
  )
  checks, first = [('q', 0), ('s', 0)], [('q', 1), ('q', 1), ('s', 1)]
  rest = [('q', 2), ('q', 2), ('q', 3), ('q', 3)]
  assert calls == checks + first + rest
  assert measured['slow'].calls == 1 and measured['quick'].calls == 3
  assert measured['slow'].milliseconds == pytest.approx(5e3)


def test_what_is_refused_was_called_once():
  class Calls(list):
    now = 0.0

  def refuse(differences):
    raise errors.ReportedError(f'{differences}')

  calls = Calls()
  with pytest.raises(errors.ReportedError, match="{'b': 0.0}"):
    timing.measure(
        {'b': _recorded(calls, 'b', 0.0)},
        seconds=1.0,
        check={'b': 'a'},
        refuse=refuse,
        untimed={'a': _recorded(calls, 'a', 0.0)},
    )
  assert calls == [('a', 0), ('b', 0)]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_pytorch_beside_it(tiny, monkeypatch, dtype):
  pytest.importorskip('torch')
  monkeypatch.setattr(op, 'SHAPES', ((8, 5), (8, 6, 2), (8, 5, 2)))
  rows = list(
      op.run(implementations=[], torch=True, **(tiny | dict(dtype=dtype)))
  )
  names = ['plain', 'vmap', 'torch:plain', 'torch:grouped']
  assert [r.implementation for r in rows] == 6 * names
  for at in range(0, len(rows), 4):
    plain, vmap, torch_plain, grouped = rows[at : at + 4]
    assert torch_plain.ratio == 1 and grouped.temporary_mib is None
    assert grouped.ratio == grouped.milliseconds / torch_plain.milliseconds
    assert (torch_plain.gflop, grouped.gflop) == (plain.gflop, vmap.gflop)
    assert grouped.error < op.TOLERANCES[dtype]


def test_a_wrong_form_of_pytorch_is_not_timed(tiny, monkeypatch, nothing_timed):
  pytest.importorskip('torch')
  right = torch_grouped.FORMS['torch:grouped']

  def wrong(torch, x, kernel, maps, stride):
    return right(torch, x, kernel, maps - 1, stride)

  monkeypatch.setitem(torch_grouped.FORMS, 'torch:grouped', wrong)
  with pytest.raises(errors.ReportedError, match='torch:grouped differs'):
    list(op.run(implementations=[], torch=True, **tiny))


def test_without_pytorch_it_says_so(tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(errors.InputError, match='pip install torch'):
    list(op.run(implementations=[], torch=True, **tiny))


@pytest.mark.parametrize('backend, together', [('cpu', 1), ('gpu', 4)])
def test_short_calls_are_timed_together_off_cpu(monkeypatch, backend, together):
  now, runs = [0.0], []

  def run(turn, calls=1):
    runs.append((turn, calls))
    now[0] += 0.005 * calls
    return np.ones(1)

  monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
  monkeypatch.setattr(timing.jax, 'default_backend', lambda: backend)
  ready = {'a': timing.Ready(run=run, fetch=lambda result: result)}
  found = timing.measure(ready, seconds=0.0, check={})['a']
  # The call that checks took longer than 0 s: the next one is timed.
  assert runs[-1] == (1, together)
  assert found.calls == together
  assert found.milliseconds == pytest.approx(5)


def test_calls_together_are_all_computed():
  inputs = [(jnp.full(3, i),) for i in range(2)]
  ready = timing.compile_jax(lambda x: 2 * x, inputs)
  np.testing.assert_array_equal(ready.run(0, calls=4), [2, 2, 2])


@pytest.mark.parametrize('later', [False, True])
def test_a_form_that_cannot_run_is_named_and_left_out(
    tiny, monkeypatch, capsys, later
):
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory\nand more')
  right = timing.compile_jax

  def compile_jax(function, inputs, **options):
    # By what it computes: 'map' is the only one that loops here.
    ready = right(function, inputs, **options)
    if 'scan' not in str(jax.make_jaxpr(function)(*inputs[0])):
      return ready
    if later:
      return dataclasses.replace(ready, run=lambda turn: raise_it())
    raise error

  def raise_it():
    raise error

  monkeypatch.setattr(timing, 'compile_jax', compile_jax)
  rows = list(op.run(implementations=['map', 'im2col'], **tiny))
  assert [r.implementation for r in rows] == 2 * ['plain', 'vmap', 'im2col']
  line = 'left out: map cannot run here: RESOURCE_EXHAUSTED: memory\n'
  assert capsys.readouterr().out == 2 * line


def test_without_what_others_are_measured_against_nothing_is(tiny, monkeypatch):
  def fail(*args, **options):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory')

  monkeypatch.setitem(aw_conv.IMPLEMENTATIONS, 'vmap', fail)
  words = 'vmap cannot run here: RESOURCE_EXHAUSTED: memory; others'
  with pytest.raises(errors.ReportedError, match=words):
    list(op.run(implementations=['map'], **tiny))


def test_rows_before_a_failure_are_kept():
  shown = []

  def rows():
    yield op.Row(*range(14))
    raise errors.ReportedError('no more')

  with pytest.raises(errors.ReportedError):
    report.show(rows(), shown)
  assert [row.batch for row in shown] == [3]


def test_gathers_are_counted():
  mesh = partition.create_mesh()
  x = jax.device_put(jnp.ones((8, 2)), partition.over_batch(mesh))
  whole = partition.replicated(mesh)

  def program(function):
    compiled = jax.jit(function, out_shardings=whole).lower(x).compile()
    text = compiled.as_text()
    return [collectives.count(text, k) for k in ('all-gather', 'all-reduce')]

  assert program(lambda x: 2 * x) == [1, 0]
  assert program(lambda x: x.sum()) == [0, 1]
  started = """
    %g = (f32[1], f32[8]) all-gather-start(%p), metadata={op_name="all-gather"}
    ROOT %h = f32[8] all-gather-done(%g)
  """
  assert collectives.count(started, 'all-gather') == 1


def test_the_branches_of_a_network_are_found_at_their_shapes():
  network = models.create('resnet50', aw_conv=True)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(
      lambda key, x: network.init(key, x, train=False),
      jax.random.key(0),
      images,
  )
  found = attention_branch.find(network, variables, images)
  shapes = [shape.shape for _, shape in found.values()]
  # The same convolutions are counted on paper.
  assert shapes == [
      (2, conv.side, conv.side, conv.channels)
      for conv in roofline.RESNET50
      for _ in range(conv.number)
  ]
  assert 'stage1_block1/conv2/attention' in found


# In the order of one line: 2 samples of 4x4x2, e = 1, float32. In bytes are
# x = y = 256, k = 144, maps = own = 288, patches = 2304.
@pytest.mark.parametrize(
    ('name', 'direction', 'count'),
    [
        ('plain', 'forward', 256 + 144 + 256),
        ('plain', 'both', 656 + (256 + 144 + 256) + (256 + 256 + 144)),
        ('vmap', 'forward', (144 + 288 + 288) + (256 + 288 + 256)),
        (
            'vmap',
            'both',
            1520 + (256 + 288 + 256) * 2 + (288 * 2 + 144) + (288 + 144 + 288),
        ),
        (
            'im2col',
            'forward',
            (144 + 288 + 288) + (256 + 2304) + (2304 + 288 + 256),
        ),
        # The loop reads the shared kernel for each sample.
        (
            'map',
            'forward',
            (288 + 288 + 288) + (256 + 2304) + (2304 + 288 + 256),
        ),
        ('loop_conv', 'forward', (288 + 288 + 288) + (256 + 288 + 256)),
    ],
)
def test_bytes_on_paper_are_those_counted_by_hand(name, direction, count):
  conv = traffic.Convolution(2, 4)
  options = dict(batch=2, expansion=1, itemsize=4)
  assert traffic.count_bytes(name, direction, conv, **options) == count


@pytest.mark.parametrize('direction', traffic.PASSES)
@pytest.mark.parametrize('name', ['plain', 'im2col', 'vmap', 'taps'])
def test_flops_on_paper_are_those_of_the_program(name, direction):
  inputs = op._inputs(traffic.Convolution(8, 5), 3, 4, 'float32', 0)
  macs = complexity.count_macs(op._function(name, direction), *inputs)
  conv = traffic.Convolution(8, 5)
  assert traffic.count_flops(name, direction, conv, 3) == 2 * sum(macs.values())


def test_every_implementation_is_on_paper():
  assert set(traffic.FORMS) == {'plain', *aw_conv.IMPLEMENTATIONS}
  strided, dense = traffic.Convolution(8, 6, 2), traffic.Convolution(8, 3)
  assert strided.positions == dense.positions == 9
  # With a stride this form takes the other's way back.
  assert traffic.form_of('loop_conv', strided) != traffic.FORMS['loop_conv']
  assert traffic.form_of('auto', dense) == traffic.FORMS['loop_dot']


def test_the_roofline():
  options = dict(batches=[4], expansion=16, dtype='bfloat16')
  rows = list(roofline.run(implementations=['fused'], device=None, **options))
  assert len(rows) == 2 * 2 * len(roofline.RESNET50)
  assert sum(r.number for r in rows) == 2 * 2 * 16
  for row in rows:
    assert row.time_ratio is None and row.milliseconds is None
    flops_per_byte = row.gflop * 1e9 / (row.moved_mib * 2**20)
    assert row.intensity == pytest.approx(flops_per_byte)
    assert (row.bytes_ratio == 1) == (row.implementation == 'plain')
  # Memory is the limit of the one, the rate that of the other.
  for gbs, tflops, field in ((1, 1e6, 'moved_mib'), (1e9, 1, 'gflop')):
    device = roofline.create_device(gbs, tflops)
    plain, fused = list(
        roofline.run(implementations=['fused'], device=device, **options)
    )[:2]
    wanted = getattr(fused, field) / getattr(plain, field)
    assert fused.time_ratio == pytest.approx(wanted)
  assert plain.milliseconds == pytest.approx(plain.gflop)
  with pytest.raises(errors.InputError, match='needed together'):
    roofline.create_device(4300, None)


def test_the_command_names_mistakes():
  for arguments, words in (
      ((), ["''", 'model, op']),
      (('op', '--implementations=mpa'), ["'mpa'", "'map'"]),
      (('op', '--batches=x'), ['--batches']),
      (('op', '--dtype=int8'), ["'int8'", 'float32']),
      (('roofline', '--expansion=-3'), ['--expansion=-3', 'at least 1']),
      (('model', '--side=0'), ['--side=0', 'at least 1']),
      (('model', '--attentions=es'), ["'es'", 'cbam']),
      (('op', '--seconds=nan'), ['--seconds=nan', 'finite']),
      (('model', '--cpu_devices=2', '--batches=3'), ['2 devices', '3 images']),
  ):
    code, _, err = commands.run(*TOOL, *arguments)
    assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
    assert all(word in err for word in words), err


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path):
  (tmp_path / 'file').touch()
  for folder, reason in (
      (tmp_path / 'absent', 'No such file'),
      (tmp_path / 'file', 'Not a directory'),
  ):
    code, out, err = commands.run(*TOOL, 'op', f'--output={folder}/x')
    assert (code, out) == (1, '') and err.count('\n') == 1
    assert f'--output={folder}/x: cannot write in the folder {folder}' in err
    assert reason in err and 'give another --output' in err
  report.check_output(f'{tmp_path}/x')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.slow
def test_the_command_measures_a_network_on_devices(tmp_path):
  output = tmp_path / 'table'
  code, out, err = commands.run(
      *TOOL,
      'model',
      '--model=resnet18',
      '--side=32',
      '--batches=2',
      '--cpu_devices=2',
      '--seconds=0',
      f'--output={output}',
  )
  assert code == 0, err
  saved = json.loads(output.with_suffix('.json').read_text())
  assert saved['environment']['backend'] == 'cpu'
  variants = ['plain', 'aw:auto', 'aw:branch']
  assert [r['variant'] for r in saved['rows']] == variants
  for row in saved['rows']:
    assert row['images_per_second'] * row['milliseconds'] == pytest.approx(2e3)
    assert (row['all_gathers'], row['devices']) == (0, 2)
    assert row['all_reduces'] > 0
  assert output.with_suffix('.png').stat().st_size > 5000
  share = 100 * saved['rows'][2]['milliseconds']
  share /= saved['rows'][1]['milliseconds']
  assert f'attention branch: {share:.1f} % of aw:auto' in out


def test_the_command_needs_neither_tables_nor_pictures_of_others(tmp_path):
  """Machines with an accelerator may hold little more than JAX and Flax."""
  absent = ('clu', 'ml_collections', 'matplotlib', 'tensorflow', 'torch')
  code, out, err = commands.run(
      '-c',
      'import runpy, sys\n'
      f'sys.modules.update(dict.fromkeys({absent}))\n'
      f'sys.argv[1:] = ["roofline", "--output={tmp_path}/table"]\n'
      'runpy.run_module("benchmarks", run_name="__main__")',
  )
  assert code == 0, err
  assert 'no picture' in out and 'time_ratio' not in out
  assert json.loads((tmp_path / 'table.json').read_text())['summary']
