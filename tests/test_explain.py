"""Maps, norms and Grad-CAM, beside what the same weights give by hand."""

import csv
import functools

import commands
import cv2
import jax
import numpy as np
from PIL import Image
import pytest
import tiny
import tiny_scenes
import trained

import awconv_jax
from awconv_jax import errors, explain, inference
from awconv_jax.explain import maps as of_layers
from awconv_jax.explain import prepared
from awconv_jax.tools import evaluate
from awconv_jax.tools import explain as tool

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The directory of a run over digits, with one block of two AW layers."""
  directory = tmp_path_factory.mktemp('explain') / 'run'
  config = tiny.get_config()
  with config.unlocked():  # Or there would be one group of inputs.
    config.model.aw_options.expansion = 2
    config.data.eval_split = 'test[:60]'
    config.data.eval_crop = 0.75
  trained.write_run(directory, config, channels=1)
  return directory


@pytest.fixture(scope='module')
def model(run):
  return inference.load(run)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return [
      rng.integers(0, 256, (height, width, 1)).astype(np.uint8)
      for height, width in ((16, 16), (40, 24), (16, 32))
  ]


@pytest.fixture
def loaded(model, monkeypatch):
  """Has the tool and the docs use the model, which is compiled by then."""
  monkeypatch.setattr(inference, 'load', lambda *_: model)


def sown(model, images):
  """Returns the maps that AW layers sow, of rows as in evaluation."""
  rows = np.stack([prepared.prepare(model, i)[1]['image'] for i in images])
  (mean,), (std,) = model.config.task.mean, model.config.task.std
  how = dict(train=False, mutable=['intermediates'])
  apply = jax.jit(functools.partial(model.task.model.apply, **how))
  _, seen = apply(model.variables, (np.float32(rows) - mean) / std)
  block = seen['intermediates']['stage1_block1']
  return {
      f'stage1_block1/{slot}': np.asarray(block[slot]['attention_maps'][0])
      for slot in ('conv1', 'conv2')
  }


def test_maps_are_those_of_the_layers_and_norms_those_of_kernels(model, images):
  found = explain.layers(model, images, batch_size=2)
  wanted = sown(model, images)
  assert list(found) == list(wanted)
  for name, (maps, norms) in found.items():
    np.testing.assert_allclose(maps, wanted[name], rtol=1e-5)
    _, slot = name.split('/')
    kernel = np.float64(
        model.variables['params']['stage1_block1'][slot]['kernel']
    )
    assert maps.shape[3] == kernel.shape[2] // 2
    factor = 1 + np.float64(maps).repeat(2, axis=3)
    changed = np.sqrt(((kernel * factor) ** 2).sum((1, 2, 3)))
    plain = np.sqrt((kernel**2).sum((0, 1, 2)))
    np.testing.assert_allclose(norms.plain, plain, rtol=1e-5)
    np.testing.assert_allclose(norms.recalibrated, changed, rtol=1e-5)
  assert explain.attention_maps(model, []) == {}


def test_grad_cam_of_what_is_pooled_is_a_sum_by_the_heads_weights(
    model, images
):
  """As y = mean over pixels of F, times W: dy / dF is W / (h w), everywhere."""
  image, label = images[1], 3  # 40 x 24, cut to a square in the middle.
  features = model.features(image)['c2']
  head = model.variables['params']['head']
  logits = features.mean((0, 1)) @ head['kernel'] + head['bias']
  wanted = np.maximum(features @ head['kernel'][:, label], 0)
  assert 0 < (wanted > 0).mean() < 1
  wanted /= wanted.max()

  for layer in (None, 'c2', 'stage1_block1'):
    cam = explain.class_activation(model, image, label, layer)
    inside = cam.map[11:29, 3:21]  # Three quarters of 24.
    spread = cv2.resize(wanted, (18, 18))
    np.testing.assert_allclose(inside, spread, atol=1e-5)
    assert np.isnan(cam.map).sum() == cam.map.size - 18**2
    assert (cam.label, cam.name, cam.box) == (3, '3', None)
  share = np.exp(logits[3]) / np.exp(logits).sum()
  np.testing.assert_allclose(cam.score, share, rtol=1e-4)
  # Without a label it is of the first class.
  assert explain.class_activation(model, image).label == logits.argmax()


def test_maps_by_class_are_means_and_variances_over_a_data_set(model):
  # Rows that fill up a batch are of the label 0.
  batches, classes = evaluate.eval_batches(model), [0, 5]
  maps, labels = [], []
  for batch in batches:
    kept = batch['mask']
    rows = {'image': batch['image']}
    found = jax.jit(of_layers.seen, static_argnums=0)(
        model.task, model.variables, rows
    )
    maps.append(np.asarray(found['stage1_block1/conv2'].maps)[kept])
    labels.append(batch['label'][kept])
  maps, labels = np.concatenate(maps), np.concatenate(labels)
  assert len(maps) == 60

  found = explain.maps_by_class(model, batches, classes)['stage1_block1/conv2']

  chosen = np.float64(maps[np.isin(labels, classes)])
  means = [np.float64(maps[labels == c]).mean(0) for c in classes]
  counts = [(labels == c).sum() for c in classes]
  within = sum((labels == c).sum() * maps[labels == c].var(0) for c in classes)
  assert found.counts.tolist() == counts
  np.testing.assert_allclose(found.means, means, rtol=1e-5)
  np.testing.assert_allclose(found.within, within / len(chosen), rtol=1e-3)
  total = found.within + found.between
  np.testing.assert_allclose(total, chosen.var(0), rtol=1e-3, atol=1e-12)


def test_the_tool_draws_photos_and_writes_the_numbers(
    run, loaded, images, tmp_path
):
  paths = [str(tmp_path / f'{n}.png') for n in range(2)]
  for path, image in zip(paths, images, strict=False):
    cv2.imwrite(path, image)
  (tmp_path / 'broken.png').write_bytes(b'x')
  arguments = (f'--run={run}', f'--input={tmp_path}', '--label=7')
  code, out, err = commands.tool(
      'explain', *arguments, f'--output={tmp_path}/e.pdf'
  )
  assert code == 1 and '1 of 3 files cannot be read' in err
  assert (tmp_path / 'e.pdf').read_bytes()[:4] == b'%PDF'
  assert 'broken.png cannot be read' in out and f'{tmp_path}/e.npz' in out
  numbers = np.load(tmp_path / 'e.npz')
  assert numbers['cam/0'].shape == (16, 16)
  shape = numbers['maps/stage1_block1/conv1'].shape
  assert shape == (2, 3, 3, 2, 4)


def test_the_tool_draws_a_data_set_by_class(run, loaded, tmp_path):
  code, _, err = commands.tool(
      'explain',
      *(f'--run={run}', '--classes=1,8', f'--output={tmp_path}/e.svg'),
      f'--numbers={tmp_path}/e.csv',
  )
  assert code == 0, err
  assert '<svg' in (tmp_path / 'e.svg').read_text()
  rows = [*csv.reader((tmp_path / 'e.csv').open())]
  assert rows[0] == ['name', 'index', 'value']
  index = [i for name, i, _ in rows if name == 'means/stage1_block1/conv1']
  assert len(index) == 2 * 3 * 3 * 2 * 4 and index[-1] == '1 2 2 1 3'


def test_without_aw_layers_there_is_grad_cam(images, tmp_path, capsys):
  config = tiny.get_config(aw_conv=False)
  trained.write_run(tmp_path, config, channels=1)
  model = inference.load(tmp_path)
  panels, numbers, _ = tool.of_photos(model, images[:1])
  assert [*panels] == ['cam'] and [*numbers] == ['cam/0']
  assert 'no AW-convolution' in capsys.readouterr().out
  with pytest.raises(errors.InputError, match='nothing to draw'):
    tool.of_photos(model, images[:1], ['maps'])


def test_only_what_is_asked_for_is_computed_and_nothing_found_is_drawn_plain(
    model, images, monkeypatch, capsys
):
  def none(*args, **kwargs):
    raise explain.NothingFound('there is no detection 0')

  monkeypatch.setattr(explain, 'class_activation', none)
  panels, numbers, _ = tool.of_photos(model, images, ['maps', 'deviation'])
  assert [*panels] == ['maps', 'deviation']
  assert numbers['maps/stage1_block1/conv1'].shape == (3, 3, 3, 2, 4)
  assert 'no detection' not in capsys.readouterr().out

  panels, numbers, _ = tool.of_photos(model, images[:1], ['cam'])
  assert 'the image is drawn without Grad-CAM' in capsys.readouterr().out
  assert numbers == {}
  title = tool.sheet(panels, ['cam']).subfigs[0].axes[0].get_title()
  assert title == 'nothing found'


def test_maps_and_features_of_bfloat16_are_float32(tmp_path, images):
  config = tiny.get_config()
  with config.unlocked():
    config.model.dtype = 'bfloat16'
  trained.write_run(tmp_path, config, channels=1)
  half = inference.load(tmp_path)
  for found in (
      explain.attention_maps(half, images[:1])['stage1_block1/conv1'],
      half.features(images[0], ['c2'])['c2'],
  ):
    assert found.dtype == np.float32


def test_the_python_code_of_the_docs(model, tmp_path, monkeypatch):
  monkeypatch.setattr(awconv_jax, 'load', lambda source: model, raising=False)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'docs').symlink_to(commands.ROOT / 'docs')
  namespace = {}
  exec(commands.python_of_docs('look.md'), namespace)
  with Image.open('docs/digit.png') as image:
    assert namespace['cam'].shape == image.size[::-1]
  assert len(namespace['of_classes']) == len(namespace['maps']) == 2
  assert (tmp_path / 'kernels.pdf').stat().st_size > 5000


def test_what_there_is_not_is_one_line(model, images):
  for options, words in (
      (dict(layer='stage2_block1'), "unknown layer 'stage2.*stage1_block1"),
      (dict(label='cat'), "unknown class 'cat'"),
      (dict(label=10), 'from 0 to 9'),
  ):
    with pytest.raises(errors.InputError, match=words):
      explain.grad_cam(model, images[0], **options)
  with pytest.raises(errors.InputError, match="unknown panel 'map'"):
    tool.sheet({'maps': (1.0, print)}, ['map'])


@pytest.mark.slow
def test_grad_cam_of_a_detection(tmp_path):
  trained.write_run(tmp_path, tiny_scenes.get_config())
  detector = inference.load(tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
  (found,) = detector.detect([image])
  for layer in (None, 'c3', 'p2'):
    cam = explain.class_activation(detector, image, layer=layer, number=1)
    assert cam.map.shape == (64, 80) and np.isfinite(cam.map).all()
    np.testing.assert_allclose(cam.box, found.boxes[1], atol=1e-3)
    np.testing.assert_allclose(cam.score, found.scores[1], rtol=1e-4)
    assert cam.label == found.labels[1]
    assert cam.layer == layer or cam.layer in ('p2', 'p3', 'p4')
  with pytest.raises(errors.InputError, match='no detection 99'):
    explain.grad_cam(detector, image, number=99)

  # Portraits lie on a canvas of their own; results are in the images' order.
  turned = image.swapaxes(0, 1)
  images = [image, turned, turned[::-1], image[:, ::-1]]
  together = explain.attention_maps(detector, images)
  for n, one in enumerate(images):
    for name, maps in explain.attention_maps(detector, [one]).items():
      np.testing.assert_allclose(together[name][n], maps[0], atol=1e-5)
