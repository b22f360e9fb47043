"""Layers of a user's own, which know nothing of valid areas."""

import flax.linen as nn


class Slope(nn.Module):
  """Scales each channel; has nothing to average."""

  slope: float = 1.0
  train: bool = False

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.ones, x.shape[-1:])
    return nn.BatchNorm(not self.train)(x * w * self.slope)


class AfterStage(Slope):
  place = 'stage'


class Halved(nn.Conv):
  """A convolution made of one."""

  place = 'conv'

  @nn.compact
  def __call__(self, x):
    inner = nn.Conv(self.features, (3, 3), name='inner')
    return inner(super().__call__(x)) / 2


class OneRow(nn.Module):
  """Would be broadcast over the rows."""

  def __call__(self, x):
    return x[..., :1, :, :]


class OneRowConv(nn.Conv):
  place = 'conv'

  @nn.compact
  def __call__(self, x):
    return super().__call__(x)[:, :1]


class TwoInputs(nn.Module):

  def __call__(self, x, y):
    return x + y


class Nowhere(Slope):
  place = 'nowhere'


class NoConv(Slope):
  place = 'conv'


class Few(nn.Module):
  """Has not all fields of a convolution."""

  features: int
  kernel_size: tuple[int, int]

  @nn.compact
  def __call__(self, x):
    return nn.Conv(self.features, self.kernel_size, name='inner')(x)
