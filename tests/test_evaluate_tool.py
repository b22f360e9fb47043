"""The tool that evaluates a run on another data set."""

import json
import re

import commands
import fake_tfds
import jax
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
import trained

from awconv_jax import data
from awconv_jax.errors import InputError
from awconv_jax.tools import evaluate
from awconv_jax.train import rundir

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
LABELS = list(range(0, 970, 97))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run over the 1000 classes: (directory, config, task, variables)."""
  directory = tmp_path_factory.mktemp('run')
  return directory, *trained.imagenet_run(directory, 1000)


def write_set(root, name, split, labels):
  """Writes images as TFDS does, with a label or a list of labels each."""
  features = fake_tfds.labelled(1000)
  key = 'real_label' if isinstance(labels[0], list) else 'label'
  if key == 'real_label':
    features[key] = tfds.features.Sequence(features.pop('label'))
  rows = [
      {'image': pictures.photo(i, 'PNG'), key: y} for i, y in enumerate(labels)
  ]
  fake_tfds.write(root, name, features, {split: rows})


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """The TFDS data directory, with a tiny imagenet2012."""
  root = tmp_path_factory.mktemp('sets')
  write_set(root, 'imagenet2012', 'validation', LABELS)
  return root


def measure(run, **changes):
  """Evaluates with what the flags would say."""
  config = evaluate.choose(rundir.read_config(run), **changes)
  return evaluate.evaluate(config, str(run))


def test_every_image_counts_once_and_any_of_several_labels_is_a_hit(run, sets):
  _, config, task, variables = run
  options = config.data.to_dict() | dict(dir=str(sets))
  batches = data.create(options, train=False, batch_size=1, seed=0)
  forward = jax.jit(task.forward)
  logits = np.array([forward(variables, batch)[0] for batch in batches])
  result = measure(run[0], data='imagenet2012', data_dir=str(sets))
  labels = np.array(LABELS)
  hits = np.argsort(-logits, axis=1, kind='stable') == labels[:, None]
  wide = logits.astype(np.float64)
  loss = np.log(np.exp(wide).sum(1)) - wide[np.arange(10), labels]
  assert result.pop('loss') == pytest.approx(loss.mean(), rel=1e-4)
  assert result == {
      'run': str(run[0]),
      'weights': 'weights of step 0',
      'data': 'imagenet2012',
      'split': 'validation',
      'num_unreadable': 0,
      'num_unlabelled': 0,
      'top1': hits[:, :1].any(1).mean(),
      'top5': hits[:, :5].any(1).mean(),
      'num_examples': 10,  # The last batch is filled up with 6 blank rows.
  }
  order = np.argsort(-logits, axis=1)
  labels = order[:4, [-1, 0]].tolist() + [order[4, [-1, 1]].tolist()]
  labels += [[int(order[5, -1])]] + [[]] * 4
  write_set(sets, 'imagenet2012_real', 'validation', labels)
  result = measure(run[0], data='imagenet2012_real', data_dir=str(sets))
  assert (result['num_examples'], result['num_unlabelled']) == (6, 4)
  assert result['top1'] == pytest.approx(4 / 6)
  assert result['top5'] == pytest.approx(5 / 6)
  assert result['data'] == 'tfds:imagenet2012_real'


@pytest.fixture(scope='module')
def two_classes(tmp_path_factory):
  """A run over two classes, and a folder with an image that is none."""
  root = tmp_path_factory.mktemp('two')
  trained.imagenet_run(root / 'run', 2)
  (root / 'run/classes.json').write_text('["cat", "dog"]')
  pictures.write_folder(root / 'images', {'train': 1, 'test': 5})
  broken = root / 'images/test/dog/3.jpg'
  broken.write_bytes(broken.read_bytes()[:60])
  return root / 'run', f'folder:{root}/images', broken


def test_unreadable_images_are_counted_and_named(two_classes, capsys):
  run, name, broken = two_classes
  result = measure(run, data=name, max_bad_fraction=0.1)
  assert (result['num_examples'], result['num_unreadable']) == (9, 1)
  assert result['num_unlabelled'] == 0
  assert f'{broken} cannot be read' in capsys.readouterr().out
  with pytest.raises(InputError, match=f'{broken} cannot be read'):
    measure(run, data=name)


def test_the_command_prints_a_table_and_writes_json(two_classes, tmp_path):
  run, name, _ = two_classes
  output = tmp_path / 'result.json'
  code, out, err = commands.tool(
      *('evaluate', f'--run={run}', f'--data={name}', '--split=train'),
      *('--batch_size=8', f'--output={output}'),
  )
  assert (code, err) == (0, '')
  result = json.loads(output.read_text())
  assert (result['split'], result['num_examples']) == ('train', 2)
  for name, value in dict(measure='value', **result).items():
    text = f'{value:.4f}' if isinstance(value, float) else str(value)
    assert f'| {name} | {text} |' in re.sub(' +', ' ', out)


def test_the_run_decides_but_for_what_is_asked(run):
  config = run[1]
  before = config.to_json_best_effort()
  same = evaluate.choose(config)
  assert same.to_dict() == config.to_dict()
  # 3 are refused where a split is read, which the devices share.
  assert evaluate.choose(config, batch_size=3).eval_batch_size == 3
  changes = dict(data_dir='/x', batch_size=24, max_bad_fraction=0.5)
  for name, meant, split in (
      (config.data.name, config.data.name, 'validation'),
      ('folder:/a', 'folder:/a', 'test'),
      ('imagenet_v2', 'tfds:imagenet_v2/matched-frequency', 'test'),
  ):
    own = evaluate.choose(config, data=name, **changes)
    assert (own.data.name, own.data.eval_split) == (meant, split)
    assert own.eval_batch_size == 24
    assert (own.data.dir, own.data.max_bad_fraction) == ('/x', 0.5)
  own = evaluate.choose(config, data='folder:/a', split='train[:10]')
  assert own.data.eval_split == 'train[:10]'
  found = rundir.read_config(run[0]).to_dict()
  assert found == config.to_dict() and isinstance(found['task']['mean'], tuple)
  assert config.to_json_best_effort() == before


def test_mistakes_are_one_line(run, two_classes, sets, tmp_path):
  pictures.write_folder(tmp_path / 'pets', {'test': 1})
  (tmp_path / 'pets/test/dog').rename(tmp_path / 'pets/test/eel')
  own = dict(data='imagenet2012', data_dir=str(sets))
  for place, changes, message in (
      (two_classes[0], own, 'num_classes is 1000 there and 2 here'),
      (
          two_classes[0],
          dict(data=f'folder:{tmp_path}/pets'),
          "label 1 is 'eel' there and 'dog' here",
      ),
      (run[0], own | dict(batch_size=3), 'eval_batch_size=3 must be a multipl'),
      (
          run[0],
          dict(data='digit_scenes'),
          "'digit_scenes' does not fit a run of 'im",
      ),
      (tmp_path, {}, 'config.json does not hold .*: No such'),
  ):
    with pytest.raises(InputError, match=message):
      measure(place, **changes)
  config = rundir.read_config(run[0]).unlock()
  config.model.num_classes = 2
  config = evaluate.choose(config, data=two_classes[1], split='train')
  message = r'does not fit the network .*fc.bias has float32\[1000\], want'
  with pytest.raises(InputError, match=message):
    evaluate.evaluate(config, str(run[0]))
