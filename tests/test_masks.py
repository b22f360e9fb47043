"""Images with masks: what sources hold, what batches show, what is refused."""

import functools
import io

import commands
import fake_tfds
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
import tiny_masks

from awconv_jax import data
from awconv_jax.data import sources
from awconv_jax.data.segmentation import mask_folder, masks
from awconv_jax.errors import InputError

SIZE = (40, 52)  # Height and width.
COLORS = np.uint8([[0, 0, 0], [255, 0, 0], [0, 255, 0]])


def png(pixels, mode=None, **options):
  """Returns an encoded array, of a palette for the mode 'P'."""
  image, file = Image.fromarray(pixels), io.BytesIO()
  if mode == 'P':
    image.putpalette(COLORS.tobytes().ljust(768, b'\7'))
  image.save(file, options.pop('format', 'PNG'), **options)
  return file.getvalue()


def scenery(seed):
  """Returns classes with two rectangles, and one that does not count."""
  rng, classes = np.random.default_rng(seed), np.zeros(SIZE, np.uint8)
  for value, left in ((1, 0), (2, 18), (255, 36)):
    top = rng.integers(20)
    classes[top : top + 16, left + 2 : left + 14] = value
  return classes


def write(root, splits, **changes):
  """Writes a folder; an image has the colour that its class has."""
  (root / 'classes.txt').write_text('background\nwing\nbeak\n')
  for split, seeds in splits.items():
    for kind in ('images', 'masks'):
      (root / split / kind / 'deep').mkdir(parents=True)
    for seed in seeds:
      classes = scenery(seed)
      if seed % 3 == 0:
        classes = np.ascontiguousarray(classes.T)  # A portrait.
      mode = 'P' if seed % 2 else None
      name = f'deep/{seed}' if seed % 2 else f'{seed}'
      image = COLORS[np.where(classes == 255, 0, classes)]
      (root / f'{split}/images/{name}.png').write_bytes(png(image))
      (root / f'{split}/masks/{name}.png').write_bytes(png(classes, mode))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('folder')
  write(root, {'train': range(11), 'test': range(11, 16)})
  return root


def options(name, **changes):
  config = tiny_masks.get_config().data.to_dict() | dict(name=name)
  small = dict(canvas=(48, 64), short_side=46, long_side=60)
  config |= dict(train_split='train', eval_split='test', flip=0.5)
  return config | small | dict(train_short_sides=(30, 46)) | changes


@pytest.mark.parametrize('jitter', [(), (0.5, 2.0)])
def test_masks_follow_their_images(folder, jitter):
  """Through resizing, flipping, cutting, on canvases of both kinds."""
  given = options(f'masks:folder:{folder}', scale_jitter=jitter)
  create = functools.partial(data.create, given, batch_size=4, seed=0)
  train, test = create(train=True), create(train=False)
  assert train.class_names == ['background', 'wing', 'beak']
  assert (train.num_examples, test.num_examples) == (11, 5)
  shown, sides = [], set()
  for batch in [next(train) for _ in range(6)] + [*test]:
    canvas = batch['image'].shape[1:3]
    sides.add(canvas)
    for n in range(4):
      if not batch['mask'][n]:
        assert (batch['gt_classes'][n] == masks.IGNORE).all()
        continue
      height, width = batch['image_size'][n]
      right = batch['gt_classes'][n]
      assert (right[height:] == 255).all() and (right[:, width:] == 255).all()
      shown.append(set(np.unique(right)))
      wanted = COLORS[np.where(right == 255, 0, right)]
      apart = np.abs(batch['image'][n] - wanted.astype(int)).max(-1) > 128
      assert apart[:height, :width].mean() < 0.01  # At edges, by resizing.
  assert sides == {(48, 64), (64, 48)}
  assert {0, 1, 2, 255} in shown
  rows = [batch['index'][batch['mask']] for batch in test]
  assert sorted(np.concatenate(rows)) == [*range(5)]
  train.close()


def test_ink_is_of_the_digits_of_digit_scenes():
  split = 'test[:30]'
  source = sources.open_source('masks:digit_scenes', None, split)
  boxed = sources.open_source('digit_scenes', None, split)
  assert source.class_names[0] == 'background' and len(source) == 30
  crowds = 0
  for i in range(len(source)):
    record, objects = source[i], boxed[i]['objects']
    assert record['image'] == boxed[i]['image']
    height, width = source.sizes[i]
    classes = source.mask_of(i, record, (height, width)).classes
    for box, label, area in zip(
        objects.boxes, objects.labels, objects.area, strict=True
    ):
      x0, y0, x1, y1 = np.rint(box).astype(int)
      inside = classes[y0:y1, x0:x1]
      assert (inside == label + 1).sum() == area
      classes[y0:y1, x0:x1] = 0
    assert not classes.any()
    crowds += objects.crowd.sum()
  assert crowds  # Of which every digit counts.


def test_pets_of_tfds(tmp_path):
  features = fake_tfds.labelled(2)
  mask = tfds.features.Image(shape=(None, None, 1), encoding_format='png')
  features |= dict(segmentation_mask=mask)
  trimap = scenery(1) % 3 + 1

  def row(image):
    return dict(image=image, label=0, segmentation_mask=io.BytesIO(png(trimap)))

  image = png(np.zeros((*SIZE, 3), np.uint8))
  directory = fake_tfds.write(
      *(tmp_path, 'oxford_iiit_pet', features), dict(train=[row(image)])
  )
  source = sources.open_source(
      'masks:tfds:oxford_iiit_pet', str(tmp_path), 'train'
  )
  assert source.class_names == ['pet', 'background', 'border'], directory
  got = source.mask_of(0, source[0], SIZE).classes
  np.testing.assert_array_equal(got, trimap - 1)
  # They have labels, too.
  labelled = sources.open_source('tfds:oxford_iiit_pet', str(tmp_path), 'train')
  assert labelled[0]['image'] == image
  fake_tfds.write(tmp_path, 'cats', features, dict(train=[row(image)]))
  with pytest.raises(InputError, match='oxford_iiit_pet are.*masks:folder'):
    sources.open_source('masks:tfds:cats', str(tmp_path), 'train')


WHOLE = scenery(1)
GREY_16 = np.zeros(SIZE, np.uint16)
BAD = {
    'size': (png(WHOLE[:30]), '52 x 30 pixels, and its image 52 x 40; make'),
    'rgb': (png(COLORS[WHOLE % 3]), 'it is RGB of 8 bits; save it as a PNG'),
    'deep': (png(GREY_16), 'it is grey of 16 bits; save it'),
    'jpeg': (png(WHOLE, format='JPEG'), 'it is no PNG; save it'),
    'range': (
        png(WHOLE % 3 + 7),
        'the number 7, and classes are 0 to 2, or 255',
    ),
    'short': (png(WHOLE)[:80], 'train/masks/2.png'),
    'none': (
        None,
        '1 of 4 images have no mask, a PNG of the same name; add it',
    ),
}


def test_what_is_left_out_is_told(tmp_path):
  write(tmp_path, {'train': [2, 4]})
  assert mask_folder.MaskFolder(str(tmp_path), 'train').faults == ()
  (tmp_path / 'train/masks/9.png').write_bytes(png(WHOLE))
  (tmp_path / 'train/images/3.heic').touch()
  (line,) = mask_folder.MaskFolder(str(tmp_path), 'train').faults
  assert '2 files left out' in line and 'a mask without an image' in line
  assert '3.heic' in line and '9.png' in line


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_mask_is_one_line_that_names_it(kind, tmp_path):
  write(tmp_path, {'train': [2, 4, 8, 10], 'test': [5]})
  content, words = BAD[kind]
  path = tmp_path / 'train/masks/2.png'
  path.unlink() if content is None else path.write_bytes(content)
  given = options(f'masks:folder:{tmp_path}')

  def read():
    train = data.create(given, train=True, batch_size=4, seed=0)
    next(train)

  with pytest.raises(InputError, match=words) as error:
    read()
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  if kind != 'none':  # A share of them can be left out.
    given['max_bad_fraction'] = 0.3
    given['train_short_sides'] = (46,)
    batches = data.create(given, train=True, batch_size=3, seed=0)
    seen = np.concatenate([next(batches)['index'] for _ in range(4)])
    batches.close()
    assert len(set(seen)) == 3 and len(batches.unreadable.news()) <= 1


@pytest.mark.parametrize(
    'name, split, words',
    [
        (
            'masks:cats',
            'test',
            "with masks 'cats'; known: digit_scenes, folder",
        ),
        ('masks:folder:{d}', 'val', 'no folder .*val/images; split'),
        ('masks:folder:{d}/test', 'all', 'classes.txt cannot be read'),
        ('masks:folder:{d}', 'test[9:]', 'holds no images'),
    ],
)
def test_a_source_that_is_not_there(name, split, words, folder):
  with pytest.raises(InputError, match=words) as error:
    sources.open_source(name.format(d=folder), None, split)
  assert '\n' not in str(error.value)


def test_commands_refuse_what_does_not_fit(folder, tmp_path):
  config = f'--config={commands.ROOT}/configs/segmentation.py'
  workdir = f'--workdir={tmp_path}/run'
  for command, words in (
      (f'complexity {config}', '(semantic_fpn)'),
      (
          f'train {config}:num_classes=10 {workdir} '
          '--config.data.name=digit_scenes --config.data.max_boxes=8',
          'whose batches have no gt_classes',
      ),
      (
          f'train {config}:data=folder:{folder},num_classes=4 {workdir}'
          ' --config.batch_size=8',
          'num_classes=4 must be 3',
      ),
  ):
    code, _, err = commands.tool(*command.split())
    assert code == 1 and err.count('\n') == 1 and words in err, err


@pytest.mark.parametrize(
    'name', ['folder', 'folder:', 'digit_scenes:x', 'no:x']
)
def test_a_name_that_is_none_is_answered_by_those_there_are(name):
  with pytest.raises(InputError) as caught:
    sources.open_source(f'masks:{name}', None, 'train')
  for known in (repr(name), 'digit_scenes', 'tfds:<name>', 'folder:<name>'):
    assert known in str(caught.value)
