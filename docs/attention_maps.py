"""Draws docs/attention_maps.png: maps of one layer, for two photographs.

A small AW-ResNet learns to tell crops of scikit-learn's two photographs apart,
which takes about a minute on two cores. Then both photographs go through it
whole. Run it from the root of a checkout: python docs/attention_maps.py
"""

import pathlib

import jax
import numpy as np
import optax
from sklearn.datasets import load_sample_images

import awconv_jax
from awconv_jax import figures

CROP, STEPS, BATCH, SHOWN = 64, 200, 32, 48


def photographs() -> np.ndarray:
  """Returns the photographs at a third of their size, float32 in [-1, 1]."""
  photos = np.stack(load_sample_images().images)[:, :426, :639]
  thirds = photos.reshape(2, 142, 3, 213, 3, 3).mean((2, 4))
  return np.float32(thirds / 127.5 - 1)


def crops(photos: np.ndarray, rng: np.random.Generator):
  """Draws a batch of random crops, with the photograph's number as label."""
  labels = rng.integers(2, size=BATCH)
  tops = rng.integers(photos.shape[1] - CROP, size=BATCH)
  lefts = rng.integers(photos.shape[2] - CROP, size=BATCH)
  images = [
      photos[label, top : top + CROP, left : left + CROP]
      for label, top, left in zip(labels, tops, lefts, strict=True)
  ]
  return np.stack(images), labels


def train(model, photos: np.ndarray):
  """Trains the model on crops; returns its variables."""
  rng = np.random.default_rng(0)
  variables = model.init(
      jax.random.key(0), photos[:, :CROP, :CROP], train=False
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))

  @jax.jit
  def step(variables, state, images, labels):
    def loss_fn(params):
      logits, updated = model.apply(
          {**variables, 'params': params},
          images,
          train=True,
          mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated

    (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        variables['params']
    )
    updates, state = optimizer.update(grads, state)
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, **updated}, state, loss

  state = optimizer.init(variables['params'])
  for number in range(STEPS):
    variables, state, loss = step(variables, state, *crops(photos, rng))
    if number % 50 == 49:
      print(f'step {number + 1}: loss {loss:.3f}')
  return variables


def draw(photos: np.ndarray, maps: np.ndarray, path: pathlib.Path) -> None:
  """Draws each photograph beside the maps of the filters that differ most.

  Args:
    photos: float32 [2, H, W, 3] in [-1, 1].
    maps: [2, kh, kw, D].
    path: the picture.
  """
  difference = np.abs(maps[0] - maps[1]).mean((0, 1))
  filters = np.sort(np.argsort(-difference)[:SHOWN])
  rows = 4
  with figures.style():
    figure = figures.new(figures.PAGE, 2.8)
    grid = figure.subplots(2, 2, width_ratios=(1, 2), squeeze=False)
    for (plain, tiled), photo, sample in zip(grid, photos, maps, strict=True):
      plain.imshow((photo + 1) / 2)
      for part in (1 / 3, 2 / 3):
        line = dict(color='white', linewidth=0.6)
        plain.axvline(part * photo.shape[1], **line)
        plain.axhline(part * photo.shape[0], **line)
      room = ((0, 1), (0, 1), (0, 0))
      tiles = np.pad(sample[..., filters], room, constant_values=np.nan)
      tiles = tiles.reshape(4, 4, rows, SHOWN // rows)
      tiles = tiles.transpose(2, 0, 3, 1).reshape(4 * rows, -1)[:-1, :-1]
      options = dict(vmin=0, vmax=1, cmap=figures.SEQUENTIAL)
      shown = tiled.imshow(tiles, **options)
      for axis in (plain, tiled):
        axis.set_axis_off()
    grid[0, 0].set_title('input, in the cells that A is computed from')
    grid[0, 1].set_title(f'A of {SHOWN} output channels, at the 3 x 3 taps')
    label = 'attention A (1: the weight counts twice)'
    figure.colorbar(shown, ax=[*grid[:, 1]], label=label)
    figures.save(figure, str(path))


def main(path: pathlib.Path) -> None:
  photos = photographs()
  model = awconv_jax.create_model(
      'resnet18',
      stage_sizes=(1, 1),
      width=32,
      stem='cifar',
      num_classes=2,
      aw_conv=True,
      aw_stages=(1, 2),
  )
  variables = train(model, photos)
  logits, seen = model.apply(
      variables, photos, train=False, mutable=['intermediates']
  )
  print('photographs told apart:', logits.argmax(-1).tolist() == [0, 1])
  block = seen['intermediates']['stage2_block1']
  (maps,) = block['conv2']['attention_maps']  # [2, 3, 3, C / e, D]
  draw(photos, np.array(maps[:, :, :, 0]), path)
  print(path)


if __name__ == '__main__':
  main(pathlib.Path(__file__).with_suffix('.png'))
