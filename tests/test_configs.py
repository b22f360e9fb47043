"""The shipped configs: their numbers, and one small step of each."""

import functools
import operator

import commands
import jax
import numpy as np
import pictures
import pytest
import tiny

from awconv_jax import command_line, data, errors
from awconv_jax.train import optim, settings
from awconv_jax.train import step as train_step
from configs import coco, imagenet

RECIPES = {
    'digits': 'digits.py:',
    'cifar10': 'cifar.py:data=cifar10,',
    'cifar100': 'cifar.py:data=cifar100,',
    **{name: f'imagenet.py:recipe={name},' for name in imagenet.RECIPES},
}
DETECTORS = {
    'digit_scenes': 'digit_scenes.py:',
    'segmentation': 'segmentation.py:',
    **{name: f'coco.py:schedule={name},' for name in coco.SCHEDULES},
}
# Of the training split.
EXAMPLES = {
    **{'digits': 1_437, 'cifar10': 50_000, 'cifar100': 50_000},
    # Without those that have no boxes to train on.
    **{'digit_scenes': 824, '1x': 117_266, '3x': 117_266},
    'segmentation': 1_000,
}
IMAGENET = 1_281_167


def load(name, **arguments):
  """Returns a shipped config, as the command line does."""
  given = ','.join(f'{key}={value}' for key, value in arguments.items())
  return command_line.load_config(
      f'{commands.ROOT}/configs/{(RECIPES | DETECTORS)[name]}{given}'
  )


# By its source in the docstring of each config: weight decay, of which
# parameters, the norm that gradients are clipped to, whether the momentum is
# Nesterov's, and (epoch, learning rate).
SOURCES = {
    'digits': (
        (5e-4, 'kernels', 0.0, True) + ((0, 0), (2, 0.1), (10, 0.05), (18, 0))
    ),
    'cifar10': (
        (5e-4, 'all', 0.0, True)
        + ((0, 0.1), (59.9, 0.1), (60.1, 0.02), (120.1, 4e-3))
    ),
    'cifar100': (
        (5e-4, 'all', 0.0, True)
        + ((119.9, 0.02), (159.9, 4e-3), (160.1, 8e-4), (200, 8e-4))
    ),
    # 0.1 * 1024 / 256 at most.
    'standard': (
        (1e-4, 'kernels', 0.0, True)
        + ((0, 0), (2.5, 0.2), (5, 0.4), (52.5, 0.2), (100, 0))
    ),
    'paper': (
        (1e-4, 'all', 0.0, False)
        + ((0, 0.1), (29.9, 0.1), (30.1, 0.01), (60.1, 1e-3), (90.1, 1e-4))
    ),
    'a2': (
        (0.02, 'kernels', 1.0, None)
        + ((0, 1e-6), (5, 5e-3), (152.5, 2.5e-3), (300, 0))
    ),
    'a3': (
        (0.02, 'kernels', 1.0, None)
        + ((0, 1e-6), (5, 8e-3), (52.5, 4e-3), (100, 0))
    ),
    'digit_scenes': (
        (1e-4, 'kernels', 10.0, True)
        + ((0, 3e-4), (1, 0.03), (10.5, 0.015), (20, 0))
    ),
    'segmentation': (
        (1e-3, 'kernels', 10.0, True)
        + ((0, 1e-3), (1, 0.1), (10.5, 0.05), (20, 0))
    ),
    # Half of the warm-up is 250 steps.
    '1x': (
        (1e-4, 'all', 0.0, False)
        + ((0, 2e-5), (250 / 7329, 0.01001), (7.9, 0.02), (8.1, 2e-3))
        + ((10.9, 2e-3), (11.1, 2e-4))
    ),
    '3x': (
        (1e-4, 'all', 0.0, False)
        + ((0, 2e-5), (27.9, 0.02), (28.1, 2e-3), (33.9, 2e-3), (34.1, 2e-4))
    ),
}


@pytest.mark.parametrize('name', SOURCES)
def test_optimizers_and_losses_of_the_sources(name):
  config, (*wanted, nesterov) = load(name), SOURCES[name][:4]
  optimizer, task = config.optimizer, config.task
  keys = 'weight_decay', 'decay_mask', 'clip_norm'
  assert [optimizer[key] for key in keys] == wanted
  assert optimizer.options.get('nesterov') is nesterov
  per_epoch = EXAMPLES.get(name, IMAGENET) / config.batch_size
  _, schedule = optim.create(
      **optimizer,
      batch_size=config.batch_size,
      total_steps=round(config.num_epochs * per_epoch),
      steps_per_epoch=per_epoch,
  )
  for epoch, rate in SOURCES[name][4:]:
    got = float(schedule(round(epoch * per_epoch)))
    # An epoch is no whole number of steps.
    assert got == pytest.approx(rate, rel=0.01, abs=1e-7), epoch
  if name in RECIPES:
    strong = name in ('a2', 'a3')
    assert optimizer.name == ('lamb' if strong else 'sgd')
    assert (task.loss, task.bce_threshold, task.mixup, task.cutmix) == (
        ('bce', 0.2, 0.1, 1.0) if strong else ('softmax', None, 0.0, 0.0)
    )
    assert task.label_smoothing == (0.1 if name == 'digits' else 0.0)
    assert config.model.stochastic_depth == (0.05 if name == 'a2' else 0.0)
    assert config.data.repeats == (3 if name == 'a2' else 1)


# Defaults of the code, by their sources: a config, where in it, and what.
AT = 'model.attention_options'
CROP = 'data.augment.random_resized_crop'
AREAS = dict(area=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
BICUBIC = dict(eval_interpolation='bicubic')
RAND = dict(num_ops=2, magnitude_std=0.5, probability=0.5, increasing=True)
PUBLISHED = [
    # mmdetection 3, faster-rcnn_r50_fpn_1x_coco; 1506.01497, 1612.03144.
    ('1x', 'model.anchors', dict(scale=8.0, ratios=(0.5, 1.0, 2.0))),
    ('1x', 'model.anchors', dict(strides=(4, 8, 16, 32, 64))),
    ('1x', 'model.anchor_matcher', dict(positive=0.7, negative=0.3)),
    ('1x', 'model.anchor_sampler', dict(number=256, fraction=0.5)),
    ('1x', 'model.anchor_coder', dict(weights=(1.0, 1.0, 1.0, 1.0))),
    ('1x', 'model.proposals', dict(threshold=0.7, number=1000)),
    ('1x', 'model.proposals', dict(train_candidates=2000, train_number=1000)),
    ('1x', 'model.pyramid', dict(features=256)),
    ('1x', 'model.roi_levels', dict(finest=56.0)),
    ('1x', 'model.roi_align', dict(output=7)),
    ('1x', 'model.roi_matcher', dict(positive=0.5, negative=0.5)),
    ('1x', 'model.roi_sampler', dict(number=512, fraction=0.25)),
    ('1x', 'model.roi_coder', dict(weights=(10.0, 10.0, 5.0, 5.0))),
    ('1x', 'model.head', dict(features=1024)),
    ('1x', 'model.detections', dict(threshold=0.5, min_score=0.05, number=100)),
    # In units of bytes.
    ('cifar10', 'task', dict(mean=255 * np.array([0.4914, 0.4822, 0.4465]))),
    ('cifar10', 'task', dict(std=255 * np.array([0.247, 0.2435, 0.2616]))),
    ('cifar100', 'task', dict(mean=255 * np.array([0.5071, 0.4867, 0.4408]))),
    ('cifar100', 'task', dict(std=255 * np.array([0.2675, 0.2565, 0.2761]))),
    ('standard', 'task', dict(mean=255 * np.array([0.485, 0.456, 0.406]))),
    ('standard', 'task', dict(std=255 * np.array([0.229, 0.224, 0.225]))),
    ('1x', 'task', dict(mean=255 * np.array([0.485, 0.456, 0.406]))),
    ('1x', 'task', dict(std=255 * np.array([0.229, 0.224, 0.225]))),
    # 1409.4842; Flax's example is bicubic, torchvision's crop bilinear; each
    # tests on 224 of 256, the procedures of 2110.00476 on 0.95 of the side.
    ('standard', CROP, AREAS | dict(interpolation='cubic')),
    ('paper', CROP, AREAS | dict(interpolation='linear')),
    ('standard', 'data', BICUBIC | dict(eval_crop=0.875)),
    ('paper', 'data', dict(eval_crop=0.875, eval_interpolation='bilinear')),
    *((name, 'data', BICUBIC | dict(eval_crop=0.95)) for name in ('a2', 'a3')),
    # 2110.00476, table 2, and timm's rand-m7-mstd0.5-inc1; 1605.07146.
    ('a2', 'data.augment.rand_augment', RAND | dict(magnitude=7.0)),
    ('a3', 'data.augment.rand_augment', RAND | dict(magnitude=6.0)),
    ('cifar10', 'data.augment.pad_crop', dict(padding=4)),
    # torch.nn.BatchNorm2d, whose momentum is 1 less this one.
    ('standard', 'model', dict(norm_momentum=0.9, norm_epsilon=1e-5)),
    # 1709.01507, 1807.06521 and its code, 1910.03151, 1807.06514, 1904.09925.
    ('attention=se', AT, dict(reduction=16)),
    ('attention=cbam', AT, dict(reduction=16, spatial_size=7)),
    ('attention=cbam', AT, dict(norm_momentum=0.99)),
    ('attention=eca', AT, dict(gamma=2.0, b=1.0)),
    ('attention=bam', AT, dict(reduction=16, dilation=4)),
    ('attention=aa', AT, dict(key_ratio=0.2, value_ratio=0.1, heads=8)),
    # 1711.05101 and torch.optim.AdamW; 1904.00962; 1706.02677.
    ('optimizer=adamw', 'optimizer.options', dict(b1=0.9, b2=0.999, eps=1e-8)),
    ('optimizer=lamb', 'optimizer.options', dict(b1=0.9, b2=0.999, eps=1e-6)),
    ('optimizer=sgd', 'optimizer.options', dict(momentum=0.9, nesterov=True)),
]


@pytest.mark.parametrize('name, section, want', PUBLISHED)
def test_the_published_defaults_stand(name, section, want):
  key, _, value = name.partition('=')
  config = load('digits', **{key: value}) if value else load(name)
  section, _, step = section.partition('.augment.')
  got = operator.attrgetter(section)(config)
  got = dict(got.augment)[step] if step else got
  for option, value in want.items():
    if not isinstance(value, str):
      value = pytest.approx(value, rel=1e-6)
    assert got[option] == value, option


def test_data_by_the_arguments():
  data = load('standard').data
  assert (data.train_split, data.eval_split) == ('train', 'validation')
  part = load('a3', eval='minival').data
  assert (part.train_split, part.eval_split) == ('train[:99%]', 'train[99%:]')
  # Augmented attention tests at the size it was trained at.
  for recipe, attention, size in (
      ('a3', 'none', 224),
      ('a3', 'aa', 160),
      ('a2', 'aa', 224),
  ):
    assert load(recipe, attention=attention).data.eval_image_size == size
  config = load('a2', data='folder:/data/my birds', num_classes=7)
  assert config.data.name == 'folder:/data/my birds'
  assert settings.create_task(config).num_classes == 7


def test_no_argument_is_ignored():
  """Every argument, given another value, makes another config."""
  every = dict(attention='se', aw_conv='false', model='resnet34')
  imagenet_ = dict(eval='minival', data='tfds:imagenette', num_classes=10)
  for name, given in (
      ('digits', dict(optimizer='lamb', schedule='step')),
      ('cifar10', dict(auto_augment='true')),
      ('standard', imagenet_),
  ):
    before = load(name).to_dict()
    for key, value in (given | every).items():
      assert load(name, **{key: value}).to_dict() != before, (name, key)


@pytest.mark.parametrize(
    'argument, words',
    [
        ('imagenet.py:recipe=a1', "'a1'.* known: a2, a3, paper, standard"),
        ('cifar.py:recipe=a2', "argument 'recipe'.* auto_augment"),
        ('coco.py:preset=mmd', "'mmd'.* known: mmdet, torchvision"),
        ('cofar.py', "unknown config file '.*cofar.py' .*did you mean"),
    ],
)
def test_wrong_arguments_are_one_line(argument, words):
  with pytest.raises(errors.InputError, match=words) as error:
    command_line.load_config(f'{commands.ROOT}/configs/{argument}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'text, words',
    [
        ('import nowhere', 'cannot be read: ModuleNotFoundError'),
        ('x = 1', 'has no function get_config'),
        ('def get_config(): return 1 / 0', 'cannot be read: ZeroDivisionError'),
        ('no program', 'cannot be read: SyntaxError'),
    ],
)
def test_a_config_file_that_cannot_be_used(text, words, tmp_path):
  (tmp_path / 'a.py').write_text(text)
  with pytest.raises(errors.InputError, match=f"a.py' {words}"):
    command_line.load_config(f'{tmp_path}/a.py')


STRONG = 'random_resized_crop flip rand_augment'


@pytest.mark.parametrize(
    'name, arguments, chain',
    [
        ('digits', {}, 'random_affine'),
        ('cifar10', {}, 'pad_crop flip'),
        ('cifar100', dict(auto_augment='true'), 'pad_crop flip auto_augment'),
        ('standard', {}, 'random_resized_crop flip'),
        ('paper', {}, 'random_resized_crop flip'),
        ('a2', {}, STRONG),
        ('a3', {}, STRONG),
    ],
)
def test_batches_of_every_recipe(name, arguments, chain, tmp_path):
  """A folder of pictures in the place of the data set."""
  config = load(name, **arguments)
  augment = config.data.augment
  assert [step for step, _ in augment] == chain.split()
  pictures.write_folder(tmp_path, {'train': 3, 'validation': 3})
  options = config.data.to_dict() | dict(name=f'folder:{tmp_path}')
  options |= dict(train_split='train', eval_split='validation')
  options |= dict(num_workers=0, num_threads=1, prefetch=1)
  create = functools.partial(data.create, options, batch_size=6, seed=0)
  batches = create(train=True)
  train, test = next(batches), next(iter(create(train=False)))
  batches.close()
  sides = config.data.image_size, config.data.eval_image_size
  for batch, side in zip((train, test), sides, strict=True):
    assert batch['image'].shape == (6, side, side, 3)
  repeated = train['index'].reshape(-1, config.data.repeats)
  assert np.all(repeated == repeated[:, :1])
  assert len(set(repeated[:, 0])) == len(repeated)


STEPS = [
    pytest.param('cifar10', {}, marks=pytest.mark.slow),
    pytest.param('paper', dict(attention='bam'), marks=pytest.mark.slow),
] + [
    pytest.param(name, dict(model=model), marks=pytest.mark.slow)
    for name in RECIPES
    for model in ('resnet50', 'wrn_28_10', 'mobilenet_v2')
]


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('name, arguments', STEPS)
def test_a_step(name, arguments):
  config = load(name, **arguments)
  tiny.shrink(config, size=16)
  # Less to compile than for the eight of the suite.
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  task = settings.create_task(config)
  # So few steps that none of them is for the warm-up, whose first rate is 0.
  optimizer, schedule = optim.create(
      **config.optimizer,
      batch_size=config.batch_size,
      total_steps=4,
      steps_per_epoch=4 / config.num_epochs,
  )
  shape = (config.batch_size, 16, 16, 1 if name == 'digits' else 3)
  draw = functools.partial(np.random.default_rng(0).integers, 0)
  batch = {
      'image': draw(256, size=shape, dtype=np.uint8),
      'label': draw(config.model.num_classes, size=shape[0], dtype=np.int32),
      'mask': np.ones(shape[0], np.bool_),
  }
  state = train_step.create_state(
      *(task, optimizer, mesh),
      seed=0,
      batch_shapes=batch,
      ema=config.ema_decay > 0,
  )
  step = train_step.create_train_step(
      *(task, optimizer, schedule, mesh),
      accumulation_steps=1,
      ema_decay=config.ema_decay,
  )
  before = jax.device_get(state.params)
  state, metrics = step(state, batch, 0)
  assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
  after = jax.device_get(state.params)
  for path, leaf in jax.tree.leaves_with_path(after):
    assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
  assert not np.array_equal(before['head']['kernel'], after['head']['kernel'])


@pytest.mark.parametrize(
    'name, parameters', [('cifar100', 23_705_252), ('standard', 25_557_032)]
)
def test_the_full_size_traces(name, parameters):
  """Initialisation, loss and prediction of ResNet-50; computes nothing."""
  config = load(name, aw_conv='false')
  task, key = settings.create_task(config), jax.random.key(0)

  def batch(rows, size):
    shapes = dict(image=((rows, size, size, 3), np.uint8))
    shapes |= dict(label=((rows,), np.int32), mask=((rows,), np.bool_))
    return {k: jax.ShapeDtypeStruct(*shape) for k, shape in shapes.items()}

  train = batch(config.batch_size, config.data.image_size)
  test = batch(config.eval_batch_size, config.data.eval_image_size)
  variables = jax.eval_shape(task.init, key, train)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == parameters
  loss, _ = jax.eval_shape(task.loss, variables, train, key)
  logits = jax.eval_shape(task.predict, variables, test)['logits']
  assert loss.shape == ()
  assert logits.shape == (config.eval_batch_size, config.model.num_classes)
