"""The attention-augmented convolution in numpy float64, by explicit loops.

Nothing here calls JAX or the package; every query and head has its turn.
"""

import naive
import numpy as np


def pool(x, size, stride, offset=(0, 0)):
  """Averages around every stride-th position, where less than a stride away."""
  out = np.zeros((len(x), *size, x.shape[-1]))
  for i, j in np.ndindex(*size):
    top, left = offset[0] + i * stride[0], offset[1] + j * stride[1]
    rows = np.abs(np.arange(x.shape[1]) - top) < stride[0]
    columns = np.abs(np.arange(x.shape[2]) - left) < stride[1]
    if rows.any() and columns.any():
      out[:, i, j] = x[:, rows][:, :, columns].mean((1, 2))
  return out


def interpolate(x, size, factor):
  """Interpolates between cells that lie `factor` positions apart."""
  for axis in (1, 2):
    cells = x.shape[axis]
    rows = []
    for i in range(size[axis - 1]):
      place = min(i / factor, cells - 1)
      low = int(place)
      high, share = min(low + 1, cells - 1), place - low
      rows.append((1 - share) * x.take(low, axis) + share * x.take(high, axis))
    x = np.stack(rows, axis)
  return x


def embedding(table, offset):
  """The row of an offset, the outermost one for an offset beyond the table."""
  reach = (len(table) - 1) // 2
  return table[max(-reach, min(offset, reach)) + reach]


def look(query, keys, values, y, x, rows, columns):
  """What one query at (y, x) of one head sees, of [H, W, d] and [H, W, e]."""
  logits = keys @ query
  if rows is not None:
    for i, j in np.ndindex(*logits.shape):
      logits[i, j] += query @ embedding(rows, i - y)
      logits[i, j] += query @ embedding(columns, j - x)
  logits /= np.sqrt(len(query))
  weights = np.exp(logits - logits.max())
  return np.einsum('ij,ije->e', weights / weights.sum(), values)


def attention(x, params, heads):
  """Multi-head attention over the positions of x, with its projections."""
  dv = params['project']['kernel'].shape[0]
  qkv = naive.dense(x, params['qkv'])
  dk = (qkv.shape[-1] - dv) // 2
  queries, keys, values = np.split(qkv, (dk, 2 * dk), -1)
  tables = params.get('relative_rows'), params.get('relative_columns')
  out = np.zeros((*x.shape[:3], dv))
  for h, n, y, z in np.ndindex(heads, *x.shape[:3]):
    of_k = slice(h * dk // heads, (h + 1) * dk // heads)
    of_v = slice(h * dv // heads, (h + 1) * dv // heads)
    seen = keys[n, :, :, of_k], values[n, :, :, of_v]
    out[n, y, z, of_v] = look(queries[n, y, z, of_k], *seen, y, z, *tables)
  return naive.dense(out, params['project'])


def augmented_conv(
    x, params, heads, *, strides=(1, 1), padding='SAME', downsample=1, conv=None
):
  """concat[conv(x), attention(x)]; `conv` stands for that branch's output."""
  kernel = params['conv']['kernel']
  if conv is None:
    conv = naive.conv(x, kernel, strides=strides, padding=padding)
    conv = conv + params['conv'].get('bias', 0)
  size, kernel_size = conv.shape[1:3], kernel.shape[:2]
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
