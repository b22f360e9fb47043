"""Batches of images with boxes: contents, order, and geometry."""

import collections
import itertools

import cv2
import fake_coco
import numpy as np
import pytest

from awconv_jax import data
from awconv_jax.data import canvases, decode, sources
from awconv_jax.data.detection import objects
from awconv_jax.data.order import EvalOrder, GroupedOrder, groups
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

  def create(*, train=True, hosts=(0, 1), **changes):
    section = fake_coco.config(f'coco_json:{root}', **changes)
    how = dict(train=train, batch_size=4, seed=0)
    how |= dict(process_index=hosts[0], process_count=hosts[1])
    batches = data.create(section, **how)
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
  encoded = np.frombuffer(fake_coco.image(seed), np.uint8)
  pixels = cv2.resize(cv2.imdecode(encoded, cv2.IMREAD_COLOR), true[::-1])
  wanted = np.zeros(batch['image'].shape[1:], int)
  wanted[: true[0], : true[1]] = pixels[..., ::-1]  # OpenCV's are BGR.
  np.testing.assert_allclose(batch['image'][i], wanted, rtol=0, atol=2)


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


@pytest.mark.parametrize('train', [True, False])
def test_hosts_threads_and_resuming_do_not_change_the_batches(create, train):
  options = dict(train=train, flip=0.5, train_short_sides=(24, 36, 48))
  whole, parts = take(create(**options), 16), []
  for i in range(2):
    parts.append(create(**options, hosts=(i, 2), num_threads=3))
    if train:
      resumed = create(**options, hosts=(i, 2), num_threads=3)
      begun = take(parts[i], 9)
      resumed.set_state(parts[i].get_state())
      parts[i] = begun + take(resumed, 7)
  for batch, *halves in zip(whole, *parts, strict=True):
    assert batch.keys() == halves[0].keys()
    for key, wanted in batch.items():
      found = np.concatenate([half[key] for half in halves])
      np.testing.assert_array_equal(found, wanted, err_msg=key)
  if train:
    with pytest.raises(InputError, match='num_examples 26, .* has 1'):
      create(train_empty=False).set_state(resumed.get_state())


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
  assert batches.num_left_out == len(empty)
  shown = {int(i) for b in take(batches, 14) for i in b['image_id']}
  assert shown == set(range(N_TRAIN)) - empty


def test_bad_values_are_refused(create):
  for changes, message in (
      (dict(canvas=(64, 48)), r'canvas=\(64, 48\) .* landscape'),
      (dict(short_side=49), 'short_side=49 and .* must be at most 48'),
      (dict(max_boxes=2), r'\d+.jpg has 3 boxes; raise '),
  ):
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
      reader.row(source, index, index % 3 == 1, rng)


def examples(landscape, portrait):
  numbers = np.random.default_rng(0).permutation(landscape + portrait)
  return np.sort(numbers[:landscape]), np.sort(numbers[landscape:])


def batch(order, number, size):
  found = [order(number * size + row) for row in range(size)]
  return {group for group, _ in found}, [first for _, (first, *_) in found]


def test_squares_are_landscape():
  landscape, portrait = groups(np.array([[3, 4], [4, 3], [3, 3], [9, 2]]))
  assert (list(landscape), list(portrait)) == ([0, 2], [1, 3])


PARTS = [((37, 21), 8), ((50, 3), 8), ((16, 0), 4), ((0, 9), 4), ((4, 4), 8)]


@pytest.mark.parametrize('parts, size', PARTS)
def test_every_epoch_shows_every_example_once(parts, size):
  parts = examples(*parts)
  order = GroupedOrder(parts, size, seed=3)
  seen, number = collections.Counter(), 0
  for epoch in range(1, 7):
    while number < sum(epoch * len(part) // size for part in parts):
      kinds, rows = batch(order, number, size)
      assert len(kinds) == 1
      seen.update(rows)
      number += 1
    for part in parts:
      counts = np.array([seen[i] for i in part])
      # What is left over at the end of an epoch is less than a batch.
      if len(part) >= size:
        assert ((counts == epoch) | (counts == epoch - 1)).all()
      elif len(part):
        assert counts.max() - counts.min() <= 1
      assert (epoch - counts).sum() == epoch * len(part) % size
  assert seen.total() == number * size


def test_orders_differ_by_seed_and_epoch_and_mix_the_orientations():
  parts = examples(64, 32)
  orders = [GroupedOrder(parts, 8, seed) for seed in (0, 0, 1)]
  a, b, c = ([batch(o, n, 8) for n in range(24)] for o in orders)
  assert a == b
  assert [rows for _, rows in a] != [rows for _, rows in c]
  assert a[:12] != a[12:]
  kinds = [next(iter(kind)) for kind, _ in a]
  assert kinds[:12] != sorted(kinds[:12]) and kinds[:12] != kinds[12:]
  assert collections.Counter(kinds[:12]) == {0: 8, 1: 4}


@pytest.mark.parametrize('far', [8, 8 * 10**10])
def test_epochs_that_leave_nothing_over_show_all_equally_often(far):
  parts, size = examples(37, 21), 8
  order = GroupedOrder(parts, size, seed=0)
  first = far * 58 // size  # Of 8 epochs, 464 examples.
  found = [batch(order, first + i, size)[1] for i in range(58)]
  seen = collections.Counter(sum(found, []))
  assert seen == dict.fromkeys(range(58), size)


@pytest.mark.parametrize('parts', [(5, 3), (8, 4), (0, 3), (3, 0)])
def test_evaluation_shows_every_example_once_and_blank_rows(parts):
  parts = examples(*parts)
  order = EvalOrder(parts, 4)
  rows = [order(i) for i in range(4 * order.num_batches)]
  shown = [index for _, chosen in rows for index in chosen]
  assert shown == [*parts[0], *parts[1]]
  for start in range(0, len(rows), 4):
    assert len({group for group, _ in rows[start : start + 4]}) == 1
  with pytest.raises(IndexError):
    order(len(rows))


def scene(height, width, boxes):
  """Returns a black image with a white rectangle at each box."""
  pixels = np.zeros((height, width, 3), np.uint8)
  for x0, y0, x1, y1 in boxes:
    pixels[y0:y1, x0:x1] = 255
  n = len(boxes)
  return pixels, objects.create(boxes, range(n), [False] * n, [1.0] * n)


def found(pixels):
  """Returns the box of the only white rectangle."""
  rows = np.flatnonzero((pixels[..., 0] > 127).any(1))
  columns = np.flatnonzero((pixels[..., 0] > 127).any(0))
  return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_fitted_keeps_the_ratio():
  sizes = (480, 640), (640, 480), (300, 900), (1, 5000)
  found = [canvases.fitted(*size, 800, 1333) for size in sizes]
  # Of the last two, the long side is the limit.
  assert found == [(800, 1067), (1067, 800), (444, 1333), (1, 1333)]


@pytest.mark.parametrize('size', [(15, 20), (45, 60)])
def test_boxes_follow_the_pixels(size):
  pixels, scenery = canvases.resize(*scene(30, 40, [(8, 4, 20, 22)]), size)
  assert pixels.shape == (*size, 3)
  np.testing.assert_allclose(scenery.boxes[0], found(pixels), atol=1)
  wanted = np.array([8, 4, 20, 22]) * size[0] / 30
  np.testing.assert_allclose(scenery.boxes[0], wanted, rtol=1e-6)
  flipped, mirrored = canvases.flip(pixels, scenery)
  np.testing.assert_array_equal(flipped, pixels[:, ::-1])
  np.testing.assert_allclose(mirrored.boxes[0], found(flipped), atol=1)


def test_pixels_are_mixed_linearly_by_the_places_of_their_centres():
  for row, wanted in (
      # Centres at -0.25, 0.25, 0.75, ...: beyond the border is the border.
      ([0, 80, 160, 240], [0, 20, 60, 100, 140, 180, 220, 240]),
      # Centres at 1.5 and 5.5: two pixels each, not the mean of all four.
      ([0, 40, 80, 240, 0, 100, 200, 4], [60, 150]),
  ):
    line = np.array(row, np.uint8)[:, None, None].repeat(3, 2)
    size = len(wanted), 1
    found, _ = canvases.resize(line, objects.NOTHING, size)
    turned, _ = canvases.resize(
        line.swapaxes(0, 1), objects.NOTHING, size[::-1]
    )
    assert found[:, 0].T.tolist() == turned[0].T.tolist() == [wanted] * 3


def test_crop_cuts_boxes_and_drops_those_outside():
  boxes = [(8, 4, 20, 22), (0, 0, 10, 3), (30, 0, 40, 30), (0, 0, 10, 6)]
  pixels, scenery = scene(30, 40, boxes)
  part, left = canvases.crop(pixels, scenery, (5, 10), (20, 15))
  assert part.shape == (20, 15, 3)
  # The second lies above, the third to the right, the fourth touches a side.
  assert left.labels.tolist() == [0]
  assert left.boxes.tolist() == [[0, 0, 10, 17]]


def test_jitter_covers_its_range_and_keeps_boxes_on_the_image():
  pixels, scenery = scene(30, 40, [(8, 4, 20, 22)])
  scales, kept = [], 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    image, left = canvases.jitter(pixels, scenery, (48, 64), (0.25, 2.0), rng)
    height, width = image.shape[:2]
    assert height <= 48 and width <= 64
    scales.append(height / 48)
    for box in left.boxes:
      kept += 1
      assert (box >= 0).all() and (box <= [width, height] * 2).all()
      np.testing.assert_allclose(box, found(image), atol=1.5)
  assert min(scales) < 0.35 and np.mean(np.array(scales) == 1) > 0.4
  assert 150 < kept <= 200


def test_what_is_trained_on():
  boxes = [(0, 0, 5, 5), (0, 0, 5, 5), (0, 0, 0.5, 5), (3, 3, 3, 3)]
  scenery = objects.create(
      boxes, range(4), [False, True, False, False], [1] * 4
  )
  assert scenery.trainable().tolist() == [True, False, False, False]
