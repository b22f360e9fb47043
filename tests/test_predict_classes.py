"""The tool on a classifier: files of all kinds, lists of them, its split."""

import csv
import io
import json
import sys
import types

import commands
import numpy as np
import pictures
from PIL import Image
import pytest
import tiny
import trained

from awconv_jax import inference
from awconv_jax.errors import InputError
from awconv_jax.tools import prediction_files

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
SIZES = ((60, 80), (80, 60), (7, 5), (90, 33), (40, 40), (1, 1))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on the digits; the weights are the first ones."""
  directory = tmp_path_factory.mktemp('classes') / 'run'
  trained.write_run(directory, tiny.get_config(aw_conv=False), channels=1)
  return directory


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Files of several kinds, two of them broken."""
  folder = tmp_path_factory.mktemp('photos')
  kinds = ('PNG', 'L'), ('JPEG', 'RGB'), ('WEBP', 'RGBA'), ('GIF', 'P')
  for n, size in enumerate(SIZES):
    kind, mode = kinds[n % len(kinds)]
    data = pictures.encode(pictures.smooth(*size, n), kind, mode)
    (folder / f'{n}.{kind.lower()}').write_bytes(data)
  (folder / 'half.jpg').write_bytes(pictures.photo(1)[:700])
  (folder / '3b.png').write_bytes(b'hello')
  return folder


def predict(run, *arguments):
  return commands.tool('predict', f'--run={run}', *arguments)


def both(folder):
  """Returns the records of a folder's two files, which must be the same."""
  lines = (folder / 'predictions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  flat = []
  for record in records:
    common = {k: v for k, v in record.items() if k != 'found'}
    found = enumerate(record.get('found', ()), 1)
    flat += [common | {'rank': n} | one for n, one in found] or [common]
  with open(folder / 'predictions.csv', newline='') as file:
    rows = [{k: v for k, v in r.items() if v} for r in csv.DictReader(file)]
  assert rows == [{k: str(v) for k, v in row.items()} for row in flat]
  return records


def test_a_folder_with_broken_files(run, photos, tmp_path):
  out = tmp_path / 'out'
  code, printed, err = predict(run, f'--input={photos}', f'--output={out}')

  assert code == 1 and err.count('\n') == 1
  assert '2 of 8 files cannot be read' in err and str(out) in err
  records = both(out)
  files = [record['file'] for record in records]
  assert files == sorted(map(str, photos.iterdir()))
  for record in records:
    (line,) = [x for x in printed.splitlines() if x.startswith(record['file'])]
    broken = record['file'].endswith(('half.jpg', '3b.png'))
    assert ('error' in record) == (' cannot be read: ' in line) == broken
    if not broken:
      assert len(record['found']) == 5 and record['found'][0]['name'] in line
  sheet = Image.open(out / 'contact_sheet.png')
  assert sheet.width > 3 * 240  # Six pictures, in three columns.
  # The same as in Python, of a file, of Pillow's image and of an array.
  model = inference.load(run)
  for path in (photos / '0.png', photos / '1.jpeg'):
    first = records[files.index(str(path))]['found'][0]
    image = Image.open(path)
    for one in model([path, image, np.asarray(image)]):
      assert one.name == first['name'] == one.top(1)[0][0]
      assert one.probability == pytest.approx(first['probability'], rel=0.02)
  with pytest.raises(InputError, match='half.jpg cannot be read: image file'):
    model([photos / '0.png', photos / 'half.jpg'])


def test_nothing_of_the_users_is_replaced(run, tmp_path):
  photo, old = tmp_path / 'same.png', tmp_path / 'old.csv'
  photo.write_bytes(
      content := pictures.encode(pictures.smooth(9, 9), 'PNG', 'L')
  )
  (tmp_path / 'link.png').symlink_to(photo)
  (tmp_path / 'contact_sheet.png').symlink_to(photo)
  for tool, output in (
      ('predict', f'--output={tmp_path}/link.png'),
      ('predict', f'--output={tmp_path}'),
      ('explain', f'--output={photo}'),
  ):
    code, _, err = commands.tool(
        tool, f'--run={run}', f'--input={photo}', output
    )
    assert code == 1 and f"would replace --input='{photo}'" in err
  assert photo.read_bytes() == content
  for output, words in (
      (run, 'holds a model or a run'),
      ('/proc/x', 'No such'),
  ):
    code, _, err = predict(run, f'--input={photo}', f'--output={output}')
    assert code == 1 and words in err and err.count('\n') == 1
  # What is stopped has its own name, beside what was there.
  old.write_text('old')
  with pytest.raises(KeyboardInterrupt):
    with prediction_files.csv_rows(old, ['label']) as write:
      write({'file': 'a.png'})
      raise KeyboardInterrupt
  assert old.read_text() == 'old'
  assert 'a.png' in (tmp_path / 'old.csv.partial').read_text()


def test_a_list_of_files_on_standard_input(run, photos, tmp_path, monkeypatch):
  names = [photos / '1.jpeg', tmp_path / 'none.jpg', photos / '0.png']
  text = '\n'.join(map(str, names)).encode()
  stdin = types.SimpleNamespace(buffer=io.BytesIO(text))
  monkeypatch.setattr(sys, 'stdin', stdin)
  out = tmp_path / 'out.csv'
  code, printed, err = predict(run, '--input=-', f'--output={out}', '--top=1')
  assert code == 1 and '1 of 3 files' in err
  # In the order of the list.
  rows = list(csv.DictReader(out.open()))
  assert [row['file'] for row in rows] == list(map(str, names))
  assert rows[1]['error'] == 'No such file or directory'
  assert [path.name for path in tmp_path.iterdir()] == ['out.csv']
  monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO()))
  assert 'no line on standard input' in predict(run, '--input=-')[2]


def test_the_eval_split_is_counted(run, tmp_path):
  code, printed, _ = predict(run, '--split=test[:30]', f'--output={tmp_path}')
  assert code == 0
  records = both(tmp_path)
  hits = [r['truth'] == r['found'][0]['name'] for r in records]
  metrics = json.loads((tmp_path / 'metrics.json').read_text())
  assert metrics == {'top1': pytest.approx(np.mean(hits)), 'num_examples': 30}
  assert f'| {np.mean(hits):.4f}' in printed
  assert Image.open(tmp_path / 'contact_sheet.png').size > (900, 900)


def test_features_and_what_a_notebook_shows(run, photos):
  model = inference.load(run)
  found = model.features(photos / '1.jpeg')
  assert list(found) == ['c2', 'embedding'] and found['c2'].shape[-1] == 4
  mean = found['c2'].mean((0, 1))
  np.testing.assert_allclose(found['embedding'], mean, rtol=1e-5)
  paths = [photos / '0.png', photos / '1.jpeg']
  each = model.features(paths, ['embedding'])
  np.testing.assert_allclose(each[1]['embedding'], mean, rtol=1e-5)
  with pytest.raises(InputError, match="unknown feature 'c9'.* known: c2, emb"):
    model.features(paths, ['c9'])
  assert model.classes == list('0123456789')
  assert repr(model).startswith('Classifier(resnet18, ')
  assert 'images 16x16x1; 10 classes: 0, 1, 2, 3, 4, ...;' in repr(model)
  (one,) = model(paths[:1])
  name, best = one.top(1)[0]
  assert repr(one).startswith(f'Prediction({name} {best:.1%}, ')
  assert repr(model.predict(paths[:1])).startswith(f'Classes(1 images: {name} ')


def test_the_python_code_of_the_docs_runs(run, photos, tmp_path, monkeypatch):
  (tmp_path / 'digits').symlink_to(run)
  (tmp_path / 'docs').mkdir()
  (tmp_path / 'docs/digit.png').symlink_to(photos / '0.png')
  monkeypatch.chdir(tmp_path)
  namespace = {}
  exec(commands.python_of_docs('predict.md'), namespace)
  assert namespace['found'].name in namespace['model'].classes
  assert 'embedding' in namespace['stages']


def test_a_stream_of_any_length_is_read_as_it_is_looked_at(run):
  model, taken = inference.load(run), []

  def frames():
    while True:
      taken.append(len(taken))
      yield np.full((20, 20), 9, np.uint8)

  results = model.stream(frames(), batch_size=2)
  first = [next(results) for _ in range(5)]
  assert len({one.label for one in first}) == 1 and len(taken) < 20
