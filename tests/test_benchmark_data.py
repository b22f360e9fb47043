"""Measuring how images are read: the same work, in turn, honestly counted."""

import json
import os
import sys

import commands
import jax
import numpy as np
from PIL import Image
import pytest

from awconv_jax import errors
from awconv_jax.train import partition
from benchmarks import (
    data,
    data_consumers,
    data_jpegs,
    data_memory,
    data_rates,
    data_readers,
    data_tf,
)

TOOL = ('-m', 'benchmarks', 'data')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return data_jpegs.write(str(tmp_path_factory.mktemp('jpegs')), 20)


def create_mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]), (partition.DATA_AXIS,))


def test_the_images_have_the_sizes_that_are_written_down(folder, tmp_path):
  sizes, kilobytes = {}, []
  for name in folder.files:
    with Image.open(name) as image:
      assert (image.format, image.mode) == ('JPEG', 'RGB')
      sizes[image.size] = sizes.get(image.size, 0) + 1
    kilobytes.append(os.path.getsize(name) / 1e3)
  assert sizes == data_jpegs.SIZES
  assert folder.kilobytes == pytest.approx(np.mean(kilobytes))
  pixels = sum(w * h * n for (w, h), n in sizes.items()) / 20e6
  assert folder.pixels == pytest.approx(pixels)
  assert 95 < folder.kilobytes < 125
  again = data_jpegs.write(str(tmp_path), 2)
  for one, other in zip(again.files, folder.files, strict=False):
    assert open(one, 'rb').read() == open(other, 'rb').read()


def test_the_pipelines(folder):
  options = dict(batch=4, side=32, interpolations=['area', 'cubic'], cores=2)
  threads, cubic, workers = data_readers.create(
      folder, None, workers=3, **options
  )
  assert [p.name for p in (threads, cubic, workers)] == [
      'threads',
      'threads',
      'workers',
  ]
  # The first interpolation, a batch in each worker and one on its way.
  assert (workers.interpolation, workers.ahead) == ('area', 6)
  batches = threads.open()
  batch = next(batches)
  batches.close()
  assert batch['image'].shape == (4, 32, 32, 3)
  assert batch['image'].dtype == np.uint8 and batch['image'].std() > 10
  alone = data_readers.create(folder, None, workers=0, **options)
  assert [p.interpolation for p in alone] == ['area', 'cubic']


def test_both_end_in_the_same_product():
  mesh, rng = create_mesh(), np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 8, 6, 3)).astype(np.uint8)
  normal = ((pixels - data_tf.MEAN) / data_tf.STD).astype(np.float32)
  results = []
  for images in (pixels, normal):
    batch = {'image': images}
    consumer = data_consumers.create('product', mesh, batch)
    results.append(np.asarray(consumer(batch)))
  wanted = normal.reshape(2, 8, 18).mean(-1)
  for result in results:
    np.testing.assert_allclose(result[..., 0], wanted, atol=1e-5)


@pytest.mark.parametrize('name', data_consumers.TRAINING)
def test_the_training_steps_train(name, quick_compiles):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
  batch = {
      'image': images,
      'label': np.arange(4, dtype=np.int32),
      'mask': np.ones(4, bool),
  }
  mesh = create_mesh()
  with jax.set_mesh(mesh):
    consumer = data_consumers.create(name, mesh, batch)
    losses = [float(consumer(batch)['loss']) for _ in range(5)]
  assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


class Clock:
  """Time that passes only when it is told to."""

  now = 0.0

  def passes(self, seconds):
    self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(data_rates.time, 'monotonic', lambda: clock.now)
  # Takes a second in a process that has run many tests.
  monkeypatch.setattr(data_rates.data_memory, 'give_back', lambda: None)
  return clock


class Batches:
  """Batches that take their time; notes what is asked for and the closing."""

  def __init__(self, clock, seconds):
    self.clock, self.seconds = clock, seconds
    self.given, self.closed = 0, False

  def __next__(self):
    self.clock.passes(self.seconds)
    self.given += 1
    return {'image': np.ones(1)}

  def close(self):
    self.closed = True


def case_of(opened, clock, seconds, consumer, ahead):
  def start():
    opened.append(Batches(clock, seconds))
    return opened[-1]

  pipeline = data_readers.Pipeline('threads', 'area', start, ahead)
  return data_rates.Case(pipeline, 'product', consumer, {'image': np.ones(1)})


@pytest.mark.parametrize(
    'reading, computing, waited', [(0.02, 0.0, 1.0), (0.01, 0.03, 0.25)]
)
def test_waiting_is_what_the_loop_spends_without_a_batch(
    clock, reading, computing, waited
):
  def consumer(batch):
    clock.passes(computing)
    return batch['image']

  opened = []
  case = case_of(opened, clock, reading, consumer, ahead=2)
  (seen,) = data_rates.measure([case], seconds=0.6)
  assert len(seen) == data_rates.ROUNDS == len(opened)
  assert all(batches.closed for batches in opened)
  for found in seen:
    assert found.waited == pytest.approx(waited)
    rate = 1 / (reading + computing)
    assert found.batches_per_second == pytest.approx(rate)
    assert found.worker_mib is None
  alone = data_rates.milliseconds(case)
  assert alone == pytest.approx(1e3 * computing)


def test_what_was_ready_beforehand_is_not_counted(clock):
  opened = []
  case = case_of(opened, clock, 1.0, lambda batch: batch['image'], ahead=7)
  data_rates.measure([case], seconds=0.0)
  timed = [batches.given for batches in opened]
  # Twice what may be ready, and the least number that is timed.
  assert timed == [16] * data_rates.ROUNDS


def test_cases_are_measured_in_turn(clock):
  order = []

  def consumer(name):
    def consume(batch):
      if order[-1:] != [name]:
        order.append(name)
      return batch['image']

    return consume

  cases = [case_of([], clock, 1.0, consumer(name), ahead=1) for name in 'ab']
  data_rates.measure(cases, seconds=0.0)
  assert order == list('ab' * data_rates.ROUNDS)


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='')
def test_memory_grows_by_what_is_held_and_can_be_given_back():
  before = data_memory.total_mib()
  held = bytearray(os.urandom(64 * 2**20))
  assert data_memory.total_mib() - before == pytest.approx(64, abs=16)
  del held
  data_memory.give_back()
  assert data_memory.total_mib() - before < 32
  assert data_memory.pss_mib(-1) is None


@pytest.mark.slow
def test_rows_of_tf_data_are_empty_without_it(monkeypatch, quick_compiles):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  monkeypatch.setattr(partition, 'create_mesh', create_mesh)
  rows = list(
      data.run(
          batches=[4],
          side=32,
          images=20,
          workers=0,
          interpolations=['linear'],
          seconds=0.0,
      )
  )
  shown = [(r.pipeline, r.consumer) for r in rows]
  assert shown == [
      ('threads', 'product'),
      ('threads', 'resnet'),
      ('threads', 'linear'),
      ('tf.data', 'product'),
  ]
  for row in rows[:-1]:
    assert row.images_per_second > 0 and row.consumer_ms > 0
    assert row.per_core == row.images_per_second / data.cores()
    assert 0 <= row.data_wait <= 1 and row.ratio is None
  assert rows[-1].images_per_second is None and np.isnan(rows[-1].bar)
  lines = data.summarize(rows)
  assert len(lines) == 3 and lines[-1] == data_tf.REMEDY
  assert 'pip install' in lines[-1] and 'training resnet' in lines[0]


def test_the_ratio_is_to_tf_data():
  rows = [
      data.Row('threads', 'area', 'product', 4, 32, 300.0, ratio=1.5),
      data.Row('tf.data', 'cubic', 'product', 4, 32, 200.0, ratio=1.0),
  ]
  assert data.summarize(rows) == ['threads area, batch 4: 1.50 times tf.data']


def test_tf_data_gives_what_it_should(folder, tmp_path):
  pytest.importorskip('tensorflow')
  path = str(tmp_path / 'images.tfrecord')
  data_tf.write_records(folder.files, path)
  batches = data_tf.batches(path, 10, 48)
  got = [next(batches) for _ in range(4)]
  batches.close()
  images = np.concatenate([b['image'] for b in got])
  assert images.shape == (40, 48, 48, 3) and images.dtype == np.float32
  # Normalised, and by the right channels: these photographs are not grey.
  pixels = images * data_tf.STD + data_tf.MEAN
  decoded = [np.asarray(Image.open(f)).mean((0, 1)) for f in folder.files]
  np.testing.assert_allclose(
      pixels.mean((0, 1, 2)), np.mean(decoded, 0), atol=25
  )
  assert len(np.unique(np.concatenate([b['label'] for b in got]))) > 10


def test_the_command_beside_tf_data(tmp_path):
  pytest.importorskip('tensorflow')
  output = tmp_path / 'table'
  code, out, err = commands.run(
      *TOOL,
      '--images=24',
      '--batches=4',
      '--seconds=0',
      '--side=32',
      '--workers=0',
      '--interpolations=linear',
      f'--output={output}',
  )
  assert code == 0, err
  rows = json.loads(output.with_suffix('.json').read_text())['rows']
  ours, tf = rows[0], rows[-1]
  assert (tf['pipeline'], tf['ratio']) == ('tf.data', 1)
  ratio = ours['images_per_second'] / tf['images_per_second']
  assert ours['ratio'] == pytest.approx(ratio)
  assert f'{ratio:.2f} times tf.data' in out
  assert output.with_suffix('.png').stat().st_size > 5000


@pytest.mark.slow
def test_the_command_reads_in_workers(tmp_path):
  output = tmp_path / 'table'
  code, out, err = commands.run(
      *TOOL,
      '--images=20',
      '--batches=2',
      '--seconds=0',
      '--side=32',
      '--workers=1',
      '--interpolations=area',
      f'--output={output}',
  )
  assert code == 0, err
  rows = json.loads(output.with_suffix('.json').read_text())['rows']
  workers = [r for r in rows if r['pipeline'] == 'workers']
  assert [r['consumer'] for r in workers] == ['product']
  if os.path.exists('/proc/self/smaps_rollup'):
    # The growth is that of all: of this process alone it would be negative.
    assert workers[0]['grown_mib'] > workers[0]['worker_mib'] / 2 > 10
  assert '20 JPEGs, on average' in out


@pytest.mark.parametrize(
    'changed, words',
    [
        (dict(interpolations=['aera']), "'aera' .*did you mean 'area'"),
        (dict(interpolations=[]), '--interpolations: want at least one'),
        (dict(images=3), '--images=3 are less than a batch of 4'),
    ],
)
def test_mistakes_are_named_before_anything_is_made(
    changed, words, monkeypatch
):
  monkeypatch.setattr(partition, 'create_mesh', create_mesh)
  monkeypatch.setattr(
      data_jpegs, 'write', lambda *args: pytest.fail('images were made')
  )
  settings = dict(
      batches=[4],
      side=32,
      images=20,
      workers=0,
      interpolations=['area'],
      seconds=0.0,
  )
  with pytest.raises(errors.InputError, match=words):
    list(data.run(**(settings | changed)))


def test_the_command_names_mistakes():
  for flag, words in (
      ('--workers=-1', ['--workers=-1', 'at least 0']),
      ('--images=0', ['--images=0', 'at least 1']),
  ):
    code, _, err = commands.run(*TOOL, flag)
    assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
    assert all(word in err for word in words), err
