"""The attention-augmented convolution in numpy float64, by explicit loops.

Nothing here calls JAX or the package; every query, key and head has its turn.
"""

import naive
import numpy as np


def average_around(image, top, left, stride):
  """Averages image [H, W, C] where it is less than a stride from a position."""
  total, count = np.zeros(image.shape[-1]), 0
  for i in range(image.shape[0]):
    for j in range(image.shape[1]):
      if abs(i - top) < stride[0] and abs(j - left) < stride[1]:
        total += image[i, j]
        count += 1
  return total / max(count, 1)


def pool(x, size, stride, offset=(0, 0)):
  """Averages around every stride-th position, from the offset on."""
  out = np.zeros((len(x), *size, x.shape[-1]))
  for n, image in enumerate(x):
    for i in range(size[0]):
      for j in range(size[1]):
        top, left = offset[0] + i * stride[0], offset[1] + j * stride[1]
        out[n, i, j] = average_around(image, top, left, stride)
  return out


def interpolate(x, size, factor):
  """Interpolates between cells that lie `factor` positions apart."""
  out = np.zeros((len(x), *size, x.shape[-1]))
  for i in range(size[0]):
    for j in range(size[1]):
      top = min(i / factor, x.shape[1] - 1)
      left = min(j / factor, x.shape[2] - 1)
      above, before = int(top), int(left)
      below = min(above + 1, x.shape[1] - 1)
      after = min(before + 1, x.shape[2] - 1)
      down, right = top - above, left - before
      out[:, i, j] = (1 - down) * (
          (1 - right) * x[:, above, before] + right * x[:, above, after]
      ) + down * (
          (1 - right) * x[:, below, before] + right * x[:, below, after]
      )
  return out


def embedding(table, offset):
  """The row of an offset, the outermost one for an offset beyond the table."""
  reach = (len(table) - 1) // 2
  return table[max(-reach, min(offset, reach)) + reach]


def look(query, keys, values, y, x, rows, columns):
  """What one query at (y, x) of one head sees, of [H, W, d] and [H, W, e]."""
  logits = np.zeros(keys.shape[:2])
  for i in range(keys.shape[0]):
    for j in range(keys.shape[1]):
      logit = query @ keys[i, j]
      if rows is not None:
        logit += query @ embedding(rows, i - y)
        logit += query @ embedding(columns, j - x)
      logits[i, j] = logit / np.sqrt(len(query))
  weights = np.exp(logits - logits.max())
  weights /= weights.sum()
  return np.einsum('ij,ije->e', weights, values)


def attention(x, params, heads):
  """Multi-head attention over the positions of x, with its projections."""
  dv = params['project']['kernel'].shape[0]
  qkv = naive.dense(x, params['qkv'])
  dk = (qkv.shape[-1] - dv) // 2
  queries, keys, values = (
      qkv[..., :dk],
      qkv[..., dk : 2 * dk],
      qkv[..., 2 * dk :],
  )
  tables = params.get('relative_rows'), params.get('relative_columns')
  out = np.zeros((*x.shape[:3], dv))
  for h in range(heads):
    of_k = slice(h * dk // heads, (h + 1) * dk // heads)
    of_v = slice(h * dv // heads, (h + 1) * dv // heads)
    for n in range(x.shape[0]):
      for y in range(x.shape[1]):
        for z in range(x.shape[2]):
          out[n, y, z, of_v] = look(
              queries[n, y, z, of_k],
              keys[n, :, :, of_k],
              values[n, :, :, of_v],
              y,
              z,
              *tables,
          )
  return naive.dense(out, params['project'])


def augmented_conv(
    x, params, heads, *, strides=(1, 1), padding='SAME', downsample=1, conv=None
):
  """concat[conv(x), attention(x)]; `conv` stands for that branch's output."""
  if conv is None:
    kernel = params['conv']['kernel']
    conv = naive.conv(x, kernel, strides=strides, padding=padding)
    conv = conv + params['conv'].get('bias', 0)
  size = conv.shape[1:3]
  kernel_size = params['conv']['kernel'].shape[:2]
  window = naive.pads(padding, x.shape[1:3], kernel_size, strides, (1, 1))
  offset = [
      (k - 1) // 2 - p[0] for k, p in zip(kernel_size, window, strict=True)
  ]
  seen = pool(x, size, strides, offset)
  coarse = [int(np.ceil(length / downsample)) for length in size]
  seen = pool(seen, coarse, (downsample, downsample))
  seen = attention(seen, params['attention'], heads)
  seen = interpolate(seen, size, downsample)
  return np.concatenate([conv, seen], axis=-1)
