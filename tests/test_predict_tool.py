"""The tool that detects: what it writes for a data set and for files."""

import json
import tracemalloc

import commands
import cv2
import fake_coco
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import trained

from awconv_jax import inference
from awconv_jax.errors import InputError
from awconv_jax.evaluators.coco import score as coco_score
from awconv_jax.tools import draw_boxes, evaluate, predict
from awconv_jax.train import rundir, settings
from configs import coco

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')
CANVAS = (24, 32)
# On images of twice the size that they have on the canvas.
SIZES = ((48, 64), (64, 48), (56, 48), (48, 64), (60, 48), (48, 56))
SET = 'set/annotations/instances_test.json'
CATEGORIES = [{'id': 5, 'name': 'dim'}, {'id': 9, 'name': 'bright'}]


def box_of(number):
  """Returns the object on an image in x, y, w, h, and its category."""
  return [4 * number, 8, 16, 24 - 2 * number], (5, 9)[number % 2]


def write_image(path, number):
  """Writes a black image with a grey or white rectangle."""
  image = np.zeros((*SIZES[number], 3), np.uint8)
  (x, y, w, h), category = box_of(number)
  image[y : y + h, x : x + w] = 150 if category == 5 else 255
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), image)


class FindsRectangles:
  """Stands for the task: one object per image, the brighter of class 1."""

  num_classes, model = 2, None

  def init(self, rng, batch):
    return {'params': {'level': jnp.zeros(())}}

  def predict(self, variables, batch):
    on = batch['image'].max(-1) > variables['params']['level']
    lines = on.any(1), on.any(2)
    low = [line.argmax(1) for line in lines]
    high = [line.shape[1] - line[:, ::-1].argmax(1) for line in lines]
    boxes = jnp.stack(low + high, -1).astype(jnp.float32)
    label = (batch['image'].max((1, 2, 3)) > 200).astype(jnp.int32)
    found = on.any((1, 2))
    return {k: batch[k] for k in batch if k != 'image'} | {
        # The second is wrong, the third one is none.
        'boxes': jnp.stack([boxes, boxes * 0 + 3, boxes], 1),
        'scores': jnp.tile(jnp.float32([0.75, 0.25, 0]), (len(on), 1)),
        'labels': jnp.stack([label] * 3, 1),
        'valid': jnp.stack([found, found, found & False], 1),
    }


def written(output):
  """Returns the contents of JSON files, and the names of the pictures."""
  files = {p.stem: json.loads(p.read_text()) for p in output.glob('*.json')}
  return files, sorted(p.name for p in (output / 'pictures').glob('*'))


@pytest.fixture
def call(tmp_path, monkeypatch):
  """Detects with what stands for a run, on a data set or on files."""
  images, annotations = [], []
  for number, (height, width) in enumerate(SIZES):
    name, key = f'{number}.png', 70 + number
    write_image(tmp_path / 'set/test' / name, number)
    images.append(dict(id=key, file_name=name, height=height, width=width))
    if number != 3:  # One image without any object.
      box, category = box_of(number)
      one = dict(id=number + 1, image_id=key, category_id=category, bbox=box)
      annotations.append(one | dict(area=box[2] * box[3], iscrowd=0))
  content = dict(images=images, annotations=annotations, categories=CATEGORIES)
  (tmp_path / 'set/annotations').mkdir()
  (tmp_path / SET).write_text(json.dumps(content))
  config = coco.get_config().unlock()
  config.eval_batch_size = 8
  config.data = fake_coco.config(f'coco_json:{tmp_path}/set')
  config.data.update(canvas=CANVAS, short_side=24, long_side=32)
  config.data.train_short_sides = (24,)
  variables = {'params': {'level': np.float32(100)}}
  trained.write_variables(tmp_path / 'run', variables, config)
  monkeypatch.setattr(settings, 'create_task', lambda config: FindsRectangles())

  def call(*inputs, **options):
    output = tmp_path / 'out'
    options['inputs'] = [str(path) for path in inputs]
    metrics = predict.run(config, str(tmp_path / 'run'), str(output), **options)
    return metrics, *written(output)

  call.config = config
  return call


def best(results):
  """Returns the detections of score .75 by image id."""
  return {
      r['image_id']: (r['bbox'], r['category_id'])
      for r in results
      if r['score'] == 0.75
  }


@pytest.mark.parametrize('flip', [False, True])
def test_the_eval_split(call, flip, tmp_path):
  metrics, files, names = call(flip=flip)
  assert best(files['results']) == {70 + n: box_of(n) for n in range(6)}
  # With those of low score, which the mirror image has elsewhere.
  assert len(files['results']) == (18 if flip else 12)
  assert metrics == files['metrics'] and metrics['num_images'] == 6
  assert metrics['AR100'] == metrics['AR1'] == 1
  assert [c['name'] for c in metrics['per_class']] == ['dim', 'bright']
  stats, by_id = coco_score(files['ground_truth'], files['results'])
  assert {k: metrics[k] for k in stats} == stats
  assert {c['category_id']: c['AP'] for c in metrics['per_class']} == by_id
  assert len(files['ground_truth']['annotations']) == 5
  assert names == [f'{70 + n:012}.png' for n in range(6)]
  text = (tmp_path / 'out/metrics.txt').read_text()
  assert 'AP of bright' in text and f'{metrics["AP50"]:.4f}' in text


def test_pictures_show_what_was_found_and_what_was_there(call, tmp_path):

  def picture(number):
    path = tmp_path / f'out/pictures/{70 + number:012}.png'
    return cv2.imread(str(path))[..., ::-1]

  def lower_side(number, factor):
    (x, y, w, h), _ = box_of(number)
    start, stop = (c // 2 * factor for c in (x, x + w))
    return picture(number)[(y + h) // 2 * factor - 1, start:stop]

  # Image 2 is 28 x 24 pixels on the canvas, without what lies beyond it.
  call(score=0.5)
  assert picture(2).shape == (28 * 18, 24 * 18, 3)
  assert (lower_side(2, 18) == draw_boxes.color_of(0)).all()
  # The second box, from 3 on, has a score below.
  assert (picture(2)[3 * 18, : 3 * 18] == 0).all()
  call(score=0.2)
  assert (picture(2)[3 * 18, 3 * 18] == draw_boxes.color_of(0)).all()
  # Nothing is found; the ground truth has no box on image 3.
  call(score=0.9)
  assert (lower_side(2, 18) == draw_boxes.TRUTH_COLOR).all()
  assert set(np.unique(picture(3))) == {0, 255}


def test_few_pictures_are_spread_over_all(call):
  # Landscape images come first: 70, 73, 75, then the portraits.
  _, _, names = call(max_images=2)
  assert names == ['000000000074.png', '000000000075.png']
  _, _, names = call(max_images=0)
  assert len(names) == 2  # Those from before; nothing is removed.


def test_files_and_folders(call, tmp_path, capsys):
  photos = tmp_path / 'photos'
  names = 'a/x.png', 'b/x.png', 'b/.hidden.png', '.thumbs/x.png'
  for number, name in enumerate(names):
    write_image(photos / name, number)
  (photos / 'loop').symlink_to(photos)
  for name in ('broken.jpg', 'broken2.jpg', 'broken\n3.png'):
    (photos / name).write_bytes(b'\xff\xd8\xff nothing')
  (photos / 'notes.txt').write_text('no image')
  single = tmp_path / 'single.png'
  write_image(single, 4)
  with pytest.raises(InputError, match='3 of 6 files cannot be read'):
    call(photos, single)
  files, names = written(tmp_path / 'out')
  assert set(files) == {'results', 'images'}
  paths = {i['id']: i['file_name'] for i in files['images']['images']}
  # The broken one is named, and has no detections.
  a, b = (str(photos / name) for name in ('a/x.png', 'b/x.png'))
  assert paths == {1: a, 2: b, 6: str(single)}
  out = capsys.readouterr().out
  assert out.count(' cannot be read: ') == 3
  assert f'{photos}/broken\\n3.png cannot be read: ' in out
  assert '3 files left out (' in out and f'{photos}/notes.txt' in out
  assert best(files['results']) == {1: box_of(0), 2: box_of(1), 6: box_of(4)}
  assert files['images']['categories'] == CATEGORIES
  assert names == ['000001_x.png', '000002_x.png', '000006_single.png']
  # Names are any bytes.
  odd = single.rename(tmp_path / 'odd\udcff\n.png')
  _, files, names = call(odd)
  assert files['images']['images'][0]['file_name'] == str(odd)
  assert '000001_odd\udcff\n.png' in names
  # Without the data set there are numbers in the place of names.
  call.config.data.name = f'coco_json:{tmp_path}/nowhere'
  _, files, _ = call(odd)
  assert [c['id'] for c in files['images']['categories']] == [1, 2]
  assert 'numbered from 1' in capsys.readouterr().out


def test_files_of_any_mode_and_photos_that_a_camera_turned(call, tmp_path):
  folder = tmp_path / 'odd'
  numbers = (0, 1, 0, 0, 0)
  turns = (Image.Transpose.ROTATE_90, 6), (Image.Transpose.ROTATE_180, 3)
  for i, mode in enumerate(('RGB', 'RGB', 'L', 'RGBA', 'P')):
    path, exif = folder / f'{i}.png', Image.Exif()
    write_image(path, numbers[i])
    image = Image.open(path).convert(mode)
    if i < len(turns):  # As a camera writes it.
      turn, exif[0x0112] = turns[i]
      image = image.transpose(turn)
    image.save(path, exif=exif)

  _, files, _ = call(folder)

  assert best(files['results']) == dict(enumerate(map(box_of, numbers), 1))
  sizes = [(i['height'], i['width']) for i in files['images']['images']]
  assert sizes == [SIZES[i] for i in numbers]


def test_a_split_without_objects_does_not_look_like_a_result(call, tmp_path):
  """Nothing is there to be found; nor is anything found."""
  content = json.loads((tmp_path / SET).read_text())
  for image in (tmp_path / 'set/test').iterdir():
    Image.new('RGB', Image.open(image).size).save(image)
  metrics, files, names = call(score=0.0)
  assert files['results'] == [] and len(names) == 6 and metrics['AP'] == 0
  (tmp_path / SET).write_text(json.dumps(content | {'annotations': []}))
  metrics, files, _ = call()
  assert files['metrics']['AP'] == files['metrics']['per_class'][0]['AP'] == -1
  text = evaluate.table(metrics)
  assert '-1' not in text and text.count('n/a') == 12 + 2
  assert text.splitlines()[-1].startswith('no image has an object')
  twice = metrics | {'per_class': metrics['per_class'][1:] * 2}
  assert evaluate.table(twice).count('AP of bright') == 2
  # Where some sizes are lacking only, the line is, too.
  some = evaluate.table(metrics | {'AP': 0.5, 'APl': -1.0})
  assert 'no image has' not in some and some.count('n/a') == 11 + 2


def test_flipping_merges_as_the_network_does(call):
  call.config.model.detections.threshold = 1.0
  _, files, _ = call(flip=True)
  # Without any suppression the right one is found twice, but three are kept.
  assert [r['score'] for r in files['results']] == [0.75, 0.75, 0.25] * 6


def test_classes_keep_their_names_and_their_order(call, tmp_path):
  write_image(tmp_path / 'a.png', 0)

  def categories():
    _, files, _ = call(tmp_path / 'a.png')
    return [(c['id'], c['name']) for c in files['images']['categories']]

  names = tmp_path / 'run/classes.json'
  rundir.write_classes(tmp_path / 'run', ('dim', 'bright'), None)
  call()  # They are those of the set.
  call.config.data.name = 'coco_json:/nowhere'
  assert categories() == [(1, 'dim'), (2, 'bright')]
  call.config.data.name = f'coco_json:{tmp_path}/set'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(FindsRectangles, 'num_classes', 3)
    with pytest.raises(InputError, match='classes.json is no list of 3 class'):
      categories()
    # More classes than the set has: no name is right for sure.
    names.unlink()
    assert categories() == [(i, str(i)) for i in (1, 2, 3)]
  # What the run itself has kept comes first.
  rundir.write_classes(tmp_path / 'run', ('heron', 'gull'), (3, 20))
  assert categories() == [(3, 'heron'), (20, 'gull')]
  for text in ('[3, 20]', '[', '{}'):
    (tmp_path / 'run/categories.json').write_text(text)
    with pytest.raises(InputError, match='categories.json is no list of 2'):
      categories()
  names.write_text('["bright", "dim"]')
  with pytest.raises(InputError, match="label 0 is 'dim' there and 'bright' h"):
    call()


def test_mistakes_are_one_line(call, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  for name in ('empty', 'nowhere'):
    with pytest.raises(InputError, match=f"{name}' is no file and holds none"):
      call(tmp_path / name)
  path = tmp_path / 'half.jpg'
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  assert cv2.imwrite(str(path), noise)
  for length in (1500, 10):  # Its header is in good order, and is not.
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match='no image can be read, of 1'):
      call(path)
    assert f'{path} cannot be read' in capsys.readouterr().out
  assert json.loads((tmp_path / 'out/results.json').read_text()) == []
  with pytest.raises(InputError, match="unknown suffix of .*o.json': '.json'"):
    predict.run(call.config, f'{tmp_path}/run', f'{tmp_path}/o.json')


def test_arrays_give_what_their_files_give_in_their_order(call, tmp_path):
  detector = inference.load(tmp_path / 'run')
  paths = [tmp_path / f'{number}.png' for number in range(6)]
  for number, path in enumerate(paths):
    write_image(path, number)
  images = [cv2.imread(str(path))[..., ::-1] for path in paths]
  traced, predict_one = [], FindsRectangles.predict

  def recorded(self, variables, batch):
    traced.append(batch['image'].shape)
    return predict_one(self, variables, batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(FindsRectangles, 'predict', recorded)
    found = detector.detect(images, batch_size=2)
    detector.detect(images[:2], batch_size=2)
  # Once for each orientation, whatever the number of images.
  assert sorted(traced) == [(2, *CANVAS, 3), (2, *CANVAS[::-1], 3)]
  _, files, _ = call(*paths)
  for number, one in enumerate(found):
    boxes = [r['bbox'] for r in files['results'] if r['image_id'] == number + 1]
    sides = one.boxes - np.pad(one.boxes[:, :2], ((0, 0), (2, 0)))
    np.testing.assert_array_equal(sides, boxes)
    assert boxes[0] == box_of(number)[0]
    assert one.scores.tolist() == [0.75, 0.25]  # The third is not valid.
    assert one.boxes.dtype == np.float32 and one.labels.dtype == np.int32
    assert one.names == [('dim', 'bright')[number % 2]] * 2
    (alone,) = detector.detect([images[number]], flip=True)
    np.testing.assert_allclose(alone.boxes[0], one.boxes[0])
  assert detector.detect([]) == []
  for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8)):
    with pytest.raises(ValueError, match=r'image is \w+ \[4, .*want uint8 \[H'):
      detector.detect([wrong])


def test_no_more_canvases_are_held_than_those_of_a_few_batches(call, tmp_path):
  detector = inference.load(tmp_path / 'run')
  detector.config.data.update(canvas=(240, 320), short_side=240, long_side=320)
  images = [np.zeros((240, 320, 3), np.uint8)] * 65
  detector.detect(images[:2], batch_size=2)  # Compiles.
  tracemalloc.start()
  found = detector.detect(images, batch_size=2)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(found) == 65 and peak < 16 * images[0].nbytes


def test_what_is_not_finite_is_nothing_and_the_best_come_first(call, tmp_path):
  detector = inference.load(tmp_path / 'run')
  boxes = np.ones((5, 4), np.float32)
  boxes[3] = np.inf
  scores, labels = np.float32([0.25, 0.75, np.nan, 0.5, 0.9]), [0, 1, 1, 1, 0]
  one = dict(scores=scores, boxes=boxes, labels=np.int32(labels))
  one |= dict(valid=np.arange(5) < 4, image_size=(4, 4), original_size=(8, 4))
  found = detector.result(one)
  assert (
      repr(found)
      == 'Found(2 objects: bright 75% [1, 2, 1, 2], dim 25% [1, 2, 1, 2])'
  )
  assert found.scores.tolist() == [0.75, 0.25]
  assert found.names == ['bright', 'dim']
  assert found.boxes.tolist() == [[1, 2, 1, 2]] * 2


def test_the_python_code_of_the_docs_runs(call, tmp_path, monkeypatch, capsys):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'run').rename(tmp_path / 'runs/digit_scenes')
  write_image(tmp_path / 'photo.png', 1)
  monkeypatch.chdir(tmp_path)
  namespace = {}
  exec(commands.python_of_docs('detection.md'), namespace)

  x, y, w, h = box_of(1)[0]
  assert namespace['found'].boxes[0].tolist() == [x, y, x + w, y + h]
  assert capsys.readouterr().out.startswith('bright 0.75 [')
