"""A training step of SGD over a mesh, as the train loop compiles it."""

from typing import Any

import jax
from jax.sharding import Mesh
import optax

from awconv_jax import models
from awconv_jax.train import partition
from benchmarks import timing

Images = tuple[jax.Array, jax.Array]


class NetworkStep:
  """A network with its variables, and a step of SGD with momentum.

  Attributes:
    model: the network.
    variables: of it, replicated over the mesh.
  """

  def __init__(self, name: str, mesh: Mesh, side: int, **options: Any):
    """Makes the network.

    Args:
      name: of the network, such as 'resnet50'.
      mesh: in force, with the axis 'data'.
      side: height and width of the images.
      **options: fields of the network.
    """
    # A block that starts as the identity has no gradients inside, and a device
    # may be faster with zeros.
    self.model = models.create(
        name, num_classes=1000, zero_init_residual=False, **options
    )
    self._mesh = mesh
    self._optimizer = optax.sgd(0.1, 0.9)

    def init():
      image = jax.numpy.zeros((1, side, side, 3))
      variables = self.model.init(jax.random.key(0), image, train=False)
      return variables, self._optimizer.init(variables['params'])

    whole = partition.replicated(mesh)
    self.variables, self._state = jax.jit(init, out_shardings=whole)()

  def _step(self, variables, state, images, labels):
    """Returns the new variables and state, and the loss."""

    def loss(params):
      logits, updated = self.model.apply(
          {**variables, 'params': params},
          images,
          train=True,
          mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated

    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params']
    )
    updates, state = self._optimizer.update(grads, state)
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, **updated}, state, value

  def arguments(self, batch: Images) -> tuple[Any, ...]:
    """Returns the step's arguments for images [N, H, W, 3] and labels [N]."""
    return self.variables, self._state, *batch

  @staticmethod
  def fetch(result: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the loss of a step's result, and the norm of every gradient.

    The state holds the sum of the gradients, which are the first.
    """
    _, state, loss = result
    return {'loss': jax.device_get(loss), 'grads': timing.norms(state)}

  def compilation(self) -> dict[str, Any]:
    """Returns the function to compile, and the options of `jax.jit`."""
    whole = partition.replicated(self._mesh)
    rows = partition.over_batch(self._mesh)
    return dict(
        function=self._step,
        fetch=self.fetch,
        in_shardings=(whole, whole, rows, rows),
        out_shardings=whole,
    )
