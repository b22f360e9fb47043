"""Networks as functions of arrays: as in evaluation, from runs and files."""

import io
import json

import commands
import jax
import numpy as np
from PIL import Image
import pytest
import tiny
import trained

from awconv_jax import inference, weights
from awconv_jax.data import decode
from awconv_jax.errors import InputError

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run over five classes: (directory, config, task, variables)."""
  directory = tmp_path_factory.mktemp('inference') / 'run'
  made = trained.imagenet_run(directory, 5)
  (directory / 'classes.json').write_text(json.dumps(list('abcde')))
  return directory, *made


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  sizes = ((40, 64), (64, 40), (32, 32), (8, 12), (33, 90))
  return [rng.integers(0, 256, (*s, 3)).astype(np.uint8) for s in sizes]


def test_an_array_is_classified_as_its_file_is_evaluated(run, images):
  directory, config, task, variables = run
  wanted = []
  for image in images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    cut = decode.center_crop(
        decode.EncodedImage(file.getvalue(), 3).pixels(),
        size=32,
        share=config.data.eval_crop,
        interpolation=config.data.eval_interpolation,
    )
    logits = task.forward(variables, {'image': cut[None]})
    wanted.append(np.asarray(jax.nn.softmax(logits))[0])

  classifier = inference.load(directory)
  found = classifier.predict(images, batch_size=2)

  np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-4, atol=1e-6)
  assert found.labels.tolist() == np.argmax(wanted, 1).tolist()
  assert found.names == ['abcde'[label] for label in found.labels]
  assert (classifier.weights, classifier.channels) == ('weights of step 0', 3)
  assert classifier.predict([]).probabilities.shape == (0, 5)


def test_lists_of_many_lengths_share_few_programs(run, images):
  classifier, traced = inference.load(run[0]), []
  outputs = classifier.outputs

  def counted(variables, batch, flip):
    traced.append(len(batch['image']))
    return outputs(variables, batch, flip)

  classifier.outputs = counted
  for number in (5, 3, 4, 5, 3):
    found = classifier(images[:number], batch_size=6)
    assert len(found) == number
  assert traced == [6, 4]


@pytest.mark.parametrize(
    'given, options, words',
    [
        (3, {}, 'int is neither an image nor a list of images'),
        ([3], {}, 'the image cannot be read: an image is int64'),
        (
            np.zeros((5, 8, 8), np.uint8),
            {},
            r'\[5, 8, 8\] is no im.* give a li',
        ),
        ([], dict(batch_size=0), 'batch_size=0 is no number of at least 1'),
    ],
)
def test_what_is_no_image_is_one_line(run, given, options, words):
  classifier = inference.load(run[0])
  for method in (classifier, classifier.predict, classifier.features):
    with pytest.raises(InputError, match=words):
      method(given, **options)
  with pytest.raises(InputError, match=words.rpartition('read: ')[2]):
    raise next(classifier.stream(given, **options))


def test_with_flip_an_image_and_its_mirror_image_are_one(run, images):
  classifier = inference.load(run[0])
  # Of sides that are odd, or are cut to odd ones, another part is cut.
  even = [images[0][:32, :48], images[1][:, 4:36], images[4][:32]]
  plain, mirrored = (
      classifier.predict([i[:, ::step] for i in even], flip=True).probabilities
      for step in (1, -1)
  )
  np.testing.assert_allclose(plain, mirrored, rtol=1e-4, atol=1e-6)
  assert abs(plain - classifier.predict(even).probabilities).max() > 1e-5


def test_a_file_of_weights_with_a_name_or_a_config(run, images, tmp_path):
  directory, config, _, variables = run
  path = tmp_path / 'a.safetensors'
  weights.save(path, variables)
  wanted = inference.load(directory).predict(images).probabilities

  named = inference.load(path, image_size=32, **config.model.to_dict())
  for loaded in (inference.load(path, config), named):
    found = loaded.predict(images).probabilities
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert loaded.weights == 'weights' and loaded.names == list('01234')


def test_grey_images_by_the_python_code_of_the_docs(tmp_path, monkeypatch):
  trained.write_run(tmp_path / 'runs/digits', tiny.get_config(), channels=1)
  monkeypatch.chdir(tmp_path)
  namespace = dict(images=[np.full((16, 20, 1), 9, np.uint8)])

  exec(commands.python_of_docs('training.md'), namespace)

  assert namespace['found'].probabilities.shape == (1, 10)
  classifier = namespace['classifier']
  assert classifier.channels == 1
  with pytest.raises(ValueError, match=r'want uint8 \[H, W\] or'):
    classifier.predict([np.zeros((16, 16, 3), np.int32)])


def test_what_cannot_be_loaded_is_one_line(run, tmp_path):
  directory, config, _, variables = run
  path = tmp_path / 'a.safetensors'
  weights.save(path, variables)
  wider = config.copy_and_resolve_references().unlock()
  wider.model.width = 32
  for arguments, options, message in (
      ((tmp_path,), {}, 'config.json does not hold .*: No such file'),
      ((path,), {}, 'has weights without a config; give one'),
      ((directory, wider), {}, 'does not fit the network '),
      ((path,), dict(name='resnet81'), "'resnet81'"),
      ((path,), dict(name='resnet18', widht=8), "config.widht.*'width'"),
      ((path,), dict(name='resnet18', num_classes=5), 'a.safetensors'),
  ):
    with pytest.raises(InputError, match=message) as caught:
      inference.load(*arguments, **options)
    assert '\n' not in str(caught.value)
