"""Numpy float64 references of the attention layers, from the papers' equations.

As in `naive`: nothing here calls JAX or the package. A reference takes x
[N, H, W, C], the layer's variables and its fields, and returns the output and
the statistics that are left.
"""

import naive
import numpy as np


def norms(variables, train, epsilon=1e-5, momentum=None):
  """Returns what normalises by name, and the statistics after that."""
  moved = dict(variables['batch_stats'])

  def norm(x, name):
    stats, axes = variables['batch_stats'][name], tuple(range(x.ndim - 1))
    if train:
      moved[name] = {
          key: momentum * stats[key] + (1 - momentum) * getattr(x, key)(axes)
          for key in ('mean', 'var')
      }
    stats = None if train else stats
    params = variables['params'][name]
    return naive.normalize(x, params, 'batch', stats, epsilon)

  return norm, moved


def se(x, variables, **_):
  return naive.squeeze_excite(x, variables['params']), {}


def cbam(x, variables, *, train=False, norm_momentum=0.99, **_):
  """1807.06521, equations 2 and 3, with the norm of the authors' code."""
  x, params = np.asarray(x, np.float64), variables['params']
  norm, moved = norms(variables, train, momentum=norm_momentum)

  def mlp(a):
    hidden = np.maximum(naive.dense(a, params['reduce']), 0)
    return naive.dense(hidden, params['expand'])

  gate = naive.sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))
  y = x * gate[:, None, None]
  kernel = params['spatial_conv']['kernel']
  half = len(kernel) // 2
  maps = np.stack([y.max(-1), y.mean(-1)], -1)
  gate = naive.conv(maps, kernel, padding=((half, half), (half, half)))
  return y * naive.sigmoid(norm(gate, 'spatial_norm')), {'batch_stats': moved}


def bam(
    x,
    variables,
    *,
    train=False,
    dilation=4,
    combine='product',
    norm_epsilon=1e-5,
    norm_momentum=0.9,
    **_,
):
  """1807.06514, equations 1 to 4, with the norms of the authors' code."""
  x, params = np.asarray(x, np.float64), variables['params']
  norm, moved = norms(variables, train, norm_epsilon, norm_momentum)
  channel = naive.dense(x.mean((1, 2)), params['channel_reduce'])
  channel = np.maximum(norm(channel, 'channel_norm'), 0)
  channel = naive.dense(channel, params['channel_expand'])[:, None, None]

  spatial = x
  for i in (1, 2, 3, 4):
    layer = params[f'spatial_conv{i}']
    pad = dilation if i in (2, 3) else 0
    spatial = layer['bias'] + naive.conv(
        spatial,
        layer['kernel'],
        padding=((pad, pad), (pad, pad)),
        dilation=(dilation, dilation),
    )
    if i < 4:
      spatial = np.maximum(norm(spatial, f'spatial_norm{i}'), 0)
  joined = channel * spatial if combine == 'product' else channel + spatial
  return x * (1 + naive.sigmoid(joined)), {'batch_stats': moved}


def eca(x, variables, **_):
  """1910.03151: each channel's gate sees the averages of its neighbours."""
  x = np.asarray(x, np.float64)
  kernel = variables['params']['conv']['kernel'][:, 0, 0]
  half = len(kernel) // 2
  average = np.pad(x.mean((1, 2)), ((0, 0), (half, half)))
  total = sum(
      w * average[:, k:][:, : x.shape[-1]] for k, w in enumerate(kernel)
  )
  return x * naive.sigmoid(total)[:, None, None], {}


def coord(
    x, variables, *, train=False, norm_epsilon=1e-5, norm_momentum=0.9, **_
):
  """2103.02907, equations 4 to 9, with the norm of the authors' code."""
  x, params = np.asarray(x, np.float64), variables['params']
  norm, moved = norms(variables, train, norm_epsilon, norm_momentum)
  line = np.concatenate([x.mean(2), x.mean(1)], 1)
  line = norm(naive.dense(line, params['reduce']), 'norm')
  line = line * np.clip(line + 3, 0, 6) / 6
  out = np.empty_like(x)
  for i, j in np.ndindex(*x.shape[1:3]):
    row = naive.dense(line[:, i], params['expand_rows'])
    column = naive.dense(line[:, x.shape[1] + j], params['expand_columns'])
    out[:, i, j] = x[:, i, j] * naive.sigmoid(row) * naive.sigmoid(column)
  return out, {'batch_stats': moved}


def simam(x, variables, *, regularization=1e-4, **_):
  """Equations 5 to 7: the inverse of each value's least energy."""
  del variables
  x = np.asarray(x, np.float64)
  out = np.empty_like(x)
  for n, c in np.ndindex(x.shape[0], x.shape[3]):
    t = x[n, :, :, c]
    mean, variance = t.mean(), t.var(ddof=1)
    least = 4 * (variance + regularization)
    least /= (t - mean) ** 2 + 2 * variance + 2 * regularization
    out[n, :, :, c] = t * naive.sigmoid(1 / least)
  return out, {}


def ge(x, variables, *, form, extent, train=False, norm_momentum=0.9, **_):
  """1810.12348, with the norms of the authors' models."""
  x = np.asarray(x, np.float64)
  size, channels, moved = x.shape[1:3], x.shape[-1], {}
  if form == 'theta_minus':
    gate = x.mean((1, 2), keepdims=True)
    if extent:
      cells = [int(np.ceil(length / extent)) for length in size]
      gate = pool(x, cells, (extent, extent))
  else:
    params = variables['params']
    norm, moved = norms(variables, train, momentum=norm_momentum)
    moved, gate = {'batch_stats': moved}, x
    for i in range(1, 1 + int(np.log2(extent or 2))):
      kernel = params[f'gather{i}']['kernel']
      how = dict(strides=(2, 2), padding=((1, 1), (1, 1)))
      if not extent:
        kernel, how = kernel[: size[0], : size[1]], dict(padding='VALID')
      gate = np.maximum(gate, 0) if i > 1 else gate
      gate = naive.conv(gate, kernel, groups=channels, **how)
      gate = norm(gate, f'norm{i}')
    if form == 'theta_plus':
      gate = naive.dense(np.maximum(gate, 0), params['reduce'])
      gate = naive.dense(np.maximum(gate, 0), params['expand'])
  out = np.empty_like(x)
  for i, j in np.ndindex(*size):
    cell = i * gate.shape[1] // size[0], j * gate.shape[2] // size[1]
    out[:, i, j] = x[:, i, j] * naive.sigmoid(gate[:, cell[0], cell[1]])
  return out, moved


def aw(x, variables, *, train=False, features, norm_momentum=0.9, **fields):
  """2108.08205."""
  known = 'gate', 'norm', 'residual', 'strides', 'padding'
  shared = fields.get('expansion_axis', 'in') == 'out'
  out = naive.aw_conv_layer(
      x,
      variables,
      train=train,
      groups_out=features // (fields['expansion'] if shared else 1),
      groups=fields.get('feature_group_count', 1),
      dilation=(fields.get('kernel_dilation', 1),) * 2,
      **{key: fields[key] for key in known if key in fields},
  )
  if 'batch_stats' not in variables:
    return out, {}
  branch = {key: own['attention'] for key, own in variables.items()}
  norm, moved = norms(branch, train, momentum=norm_momentum)
  first, second = (branch['params'][f'pointwise{i}'] for i in (1, 2))
  grid = naive.adaptive_pool(x, variables['params']['kernel'].shape[:2])
  hidden = np.maximum(norm(naive.dense(grid, first), 'norm1'), 0)
  norm(naive.dense(hidden, second), 'norm2')
  return out, {'batch_stats': {'attention': moved}}


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


def aa(x, variables, *, heads, padding, downsample=1, conv=None, **fields):
  """1904.09925: concat[conv(x), attention(x)]; `conv` stands for the former."""
  params = variables['params']
  strides = np.broadcast_to(fields.get('strides', 1), 2)
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
  return np.concatenate([conv, seen], axis=-1), {}
