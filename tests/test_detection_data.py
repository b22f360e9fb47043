"""Batches of images with boxes: contents and canvases."""

import itertools

import fake_coco
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import decode, sources
from awconv_jax.errors import InputError

N_TRAIN = 26


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  path = tmp_path_factory.mktemp('json')
  fake_coco.write(path, {'train': range(N_TRAIN), 'test': range(100, 111)})
  return path


@pytest.fixture(scope='module')
def create(root):
  """Returns `create(train=..., config overrides...)`."""
  created = []

  def create(*, train=True, **changes):
    section = fake_coco.config(f'coco_json:{root}', **changes)
    batches = data.create(section, train=train, batch_size=4, seed=0)
    created.extend([batches] if train else [])
    return batches

  yield create
  for batches in created:
    batches.close()


def take(batches, number):
  return list(itertools.islice(batches, number))


def kept_of(seed, crowds):
  found = fake_coco.annotations(seed, (3, 5, 9))
  return [a for a in found if crowds or not a['iscrowd']]


def assert_padded(row, wanted):
  np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=1e-5)
  assert not row[len(wanted) :].any()


def assert_row(batch, i, seed, crowds):
  """The row holds image `seed`, its boxes, and nothing beyond."""
  kept, size = kept_of(seed, crowds), fake_coco.SIZES[seed % 3]
  scale = min(48 / min(size), 60 / max(size))
  labels = [(3, 5, 9).index(a['category_id']) for a in kept]
  assert_padded(batch['gt_valid'][i], [True] * len(labels))
  assert_padded(batch['gt_boxes'][i], fake_coco.xyxy(kept) * scale)
  assert_padded(batch['gt_labels'][i], labels)
  if crowds:
    assert_padded(batch['gt_crowd'][i], [bool(a['iscrowd']) for a in kept])
    assert_padded(batch['gt_area'][i], [a['area'] for a in kept])
  assert tuple(batch['original_size'][i]) == size
  true = batch['image_size'][i]
  assert true.tolist() == [round(s * true[0] / size[0]) for s in size]
  outside = batch['image'][i].copy()
  outside[: true[0], : true[1]] = 0
  assert not outside.any()


def test_training_has_the_boxes_but_no_crowds(create):
  batches, pair, rows = create(), ((4, 2), np.int32), (4, 6)
  kinds = dict(image_size=pair, original_size=pair, mask=((4,), bool))
  kinds |= dict(gt_boxes=((*rows, 4), np.float32), gt_labels=(rows, np.int32))
  kinds |= dict(gt_valid=(rows, bool), image_id=((4,), np.int32))
  seen, shapes = set(), set()
  for batch in take(batches, 14):
    shapes.add(batch['image'].shape)
    kinds['image'] = batch['image'].shape, np.uint8
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == kinds
    assert batch['mask'].all()
    for i, seed in enumerate(batch['image_id']):
      seen.add(int(seed))
      assert_row(batch, i, seed, crowds=False)
  assert seen == set(range(N_TRAIN))
  assert shapes == {(4, 48, 64, 3), (4, 64, 48, 3)}
  assert (batches.num_examples, batches.num_classes) == (N_TRAIN, 3)
  assert batches.batches_per_epoch == N_TRAIN / 4
  assert batches.category_ids == (3, 5, 9)


def test_evaluation_has_every_image_once_and_all_its_boxes(create):
  batches = create(train=False)
  taken = list(batches)
  # 100..110: 7 landscapes or squares, 4 portraits.
  assert [b['image'].shape[1] for b in taken] == [48, 48, 64]
  assert batches.batches_per_epoch == 3
  ids = [b['image_id'][i] for b in taken for i in range(4) if b['mask'][i]]
  assert sorted(ids) == list(range(100, 111))
  assert sum(b['gt_crowd'].sum() for b in taken) == 2
  for batch in taken:
    for i, seed in enumerate(batch['image_id']):
      if batch['mask'][i]:
        assert_row(batch, i, seed, crowds=True)
        continue
      assert seed == -1 and not batch['gt_valid'][i].any()
      assert (batch['image_size'][i] > 0).all()


def test_multi_scale_draws_every_size_and_flips_half(create):
  taken = take(create(train_short_sides=(24, 48)), 60)
  shorts = [min(s) for b in taken for s in b['image_size'].tolist()]
  # Of 3 : 4 images, 60 pixels allow for 45.
  assert set(shorts) == {24, 45, 48}
  assert 0.35 < np.mean(np.array(shorts) == 24) < 0.65
  plain = {}
  for b in create(train=False, eval_split='train'):
    plain |= dict(zip(b['image_id'].tolist(), b['image'], strict=True))
  flipped = []
  for b in take(create(flip=0.5), 50):
    for image, seed, size in zip(
        b['image'], b['image_id'], b['image_size'], strict=True
    ):
      cut = np.s_[: size[0], : size[1]]
      same = (image == plain[seed]).all()
      turned = (image[cut][:, ::-1] == plain[seed][cut]).all()
      assert same != turned
      flipped.append(turned)
  assert 0.35 < np.mean(flipped) < 0.65


def test_empty_images_can_be_left_out(create):
  batches = create(train_empty=False)
  empty = {s for s in range(N_TRAIN) if not kept_of(s, crowds=False)}
  assert len(empty) > 5  # Some have but a crowd.
  assert batches.num_examples == N_TRAIN - len(empty)
  shown = {int(i) for b in take(batches, 14) for i in b['image_id']}
  assert shown == set(range(N_TRAIN)) - empty


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(canvas=(64, 48)), r'canvas=\(64, 48\) .* landscape'),
        (dict(short_side=49), 'short_side=49 and .* must be at most 48'),
        (dict(max_boxes=2), r'\d+.jpg has 3 boxes; raise '),
    ],
)
def test_bad_values_are_refused(create, changes, message):
  with pytest.raises(InputError, match=message):
    create(**changes)


def test_more_boxes_than_the_index_knew_of_are_as_a_broken_image(root):
  source = sources.open_source(f'coco_json:{root}', None, 'train')
  options = fake_coco.config(f'coco_json:{root}', max_boxes=2).to_dict()
  read = sources.reader_of(options.pop('name'))
  reader = read(**options, train=True, batch_size=2, seed=0)
  index = int(source.index[:, 3].argmax())
  for rng in (None, np.random.default_rng(0)):
    with pytest.raises(decode.UnreadableError, match='3 boxes are others'):
      reader._row(source, index, index % 3 == 1, rng)
