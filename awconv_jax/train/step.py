"""The state of training and the two compiled functions over it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from awconv_jax.train import optim, partition

Batch = Mapping[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """All that a run needs to go on, besides the data iterator's position."""

  step: jax.Array  # int32 [], steps taken.
  params: Any
  model_state: Any  # The network's other variables, such as 'batch_stats'.
  opt_state: Any
  ema: Any  # None, or averages of {'params': ..., **model_state}.

  def variables(self) -> dict[str, Any]:
    """Returns the newest variables of the network."""
    return {'params': self.params, **self.model_state}

  def eval_variables(self) -> dict[str, Any]:
    """Returns the variables to evaluate with: the averages, if kept."""
    return self.variables() if self.ema is None else self.ema


def sharded(mesh: Mesh, state: TrainState) -> TrainState:
  """Returns shardings of a state, or of its shapes, for `create_train_step`.

  Each device holds, and updates, its share of the optimizer's state and of the
  averages (ZeRO-1, https://arxiv.org/abs/1910.02054).
  """
  whole = partition.replicated(mesh)
  opt_state, ema = partition.sharded(mesh, (state.opt_state, state.ema))
  return TrainState(whole, whole, whole, opt_state, ema)


def create_state(
    task: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    batch_shapes: Mapping[str, jax.ShapeDtypeStruct],
    ema: bool,
    shard: bool = False,
    warm_start: Callable[[Any], Any] = lambda variables: variables,
) -> TrainState:
  """Returns the initial state, replicated over the mesh, or `sharded`.

  The task gives the variables for batches of these shapes, and `warm_start`
  others for them, which may be on the host; `ema` is whether to keep averages,
  `shard` whether to shard.
  """

  def init(seed):
    batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in batch_shapes.items()}
    return dict(task.init(jax.random.key(seed), batch))

  def first(variables):
    # Copies: the step donates the state, and what that shared would be gone.
    model_state = jax.tree.map(jnp.copy, variables)
    params = model_state.pop('params')
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema={'params': params, **model_state} if ema else None,
    )

  whole = partition.replicated(mesh)
  fresh = jax.jit(init, out_shardings=whole)
  # Which parameters do not exist is told before anything is compiled.
  seed = np.uint32(seed)  # An argument, so that seeds share the program.
  jax.eval_shape(optimizer.init, fresh.eval_shape(seed)['params'])
  variables = warm_start(fresh(seed))
  out = sharded(mesh, jax.eval_shape(first, variables)) if shard else whole
  return jax.jit(first, in_shardings=whole, out_shardings=out)(variables)


def _accumulate(loss_and_grads, state, batch, rng, number):
  """Averages loss, metrics and gradients over parts of a batch, in turn."""
  if number == 1:
    return loss_and_grads(state.params, state.model_state, batch, rng)

  # Each part takes every number-th row, so that it is spread over all devices:
  # [B, ...] becomes [number, B / number, ...].
  parts = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1),
      dict(batch),
  )

  # Gradients are summed up, as the scan would stack those of all parts.
  def step(carry, part):
    (model_state, sums), (index, rows) = carry, part
    (loss, (metrics, model_state)), grads = loss_and_grads(
        state.params, model_state, rows, jax.random.fold_in(rng, index)
    )
    return (model_state, jax.tree.map(jnp.add, sums, grads)), (loss, metrics)

  start = state.model_state, jax.tree.map(jnp.zeros_like, state.params)
  (model_state, sums), scalars = jax.lax.scan(
      step, start, (jnp.arange(number), parts)
  )
  loss, metrics = jax.tree.map(lambda x: x.mean(0), scalars)
  grads = jax.tree.map(lambda x: x / number, sums)
  return (loss, (metrics, model_state)), grads


def _freeze_norms(patterns: Sequence[str]) -> Callable[..., Any]:
  """Has norms whose statistics are frozen normalise by these.

  For `nn.intercept_methods`. A norm that normalised by the batch would compute
  what no evaluation does, however still its statistics lie.
  """

  def intercept(call, args, kwargs, context):
    norm = context.module
    if (
        not isinstance(norm, nn.BatchNorm)
        or context.method_name != '__call__'
        or norm.use_running_average
    ):
      return call(*args, **kwargs)
    path = '/'.join(norm.path)
    statistics = {f'{path}/mean': 0, f'{path}/var': 0}
    if not any(optim.is_frozen(statistics, patterns).values()):
      return call(*args, **kwargs)
    fields = {f.name: getattr(norm, f.name) for f in dataclasses.fields(norm)}
    fields |= dict(use_running_average=True, parent=norm.scope, name=None)
    return type(norm)(**fields)(*args, **kwargs)

  return intercept


def create_train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    accumulation_steps: int,
    ema_decay: float,
    frozen: Sequence[str] = (),
    placed: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the compiled step: (state, batch, seed) -> (state, metrics).

  The seed, uint32, is that of all that is random in a step, together with the
  step's number.

  Args:
    task, optimizer: give the loss and the updates.
    schedule: maps the step to the learning rate, for the metrics.
    mesh: the batch is sharded over it, the state replicated, and donated.
    placed: shardings of a state that is `sharded`; None if it is not.
    accumulation_steps: parts the batch is computed in, one after the other.
    ema_decay: share of the old averages, after t steps at most
      (1 + t) / (10 + t); unused if the state has none.
    frozen: patterns of parameters that get no gradient, and of statistics that
      stay and that their norms normalise by; see `optim.is_frozen`.

  Metrics are scalars: loss, the task's own, learning_rate, and the norms of
  the gradients and of the parameters after the step (both become non-finite
  when training diverges).
  """

  def loss(params, model_state, batch, rng):
    # So that no gradient is computed for what the optimizer leaves alone.
    params = jax.tree.map(
        lambda keep, p: jax.lax.stop_gradient(p) if keep else p,
        optim.is_frozen(params, frozen),
        params,
    )
    with nn.intercept_methods(_freeze_norms(frozen)):
      return task.loss({'params': params, **model_state}, batch, rng)

  loss_and_grads = jax.value_and_grad(loss, has_aux=True)

  def train_step(state, batch, seed):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, (metrics, model_state)), grads = _accumulate(
        loss_and_grads, state, batch, rng, accumulation_steps
    )
    for name, new in model_state.items():
      model_state[name] = jax.tree.map(
          lambda keep, old, new: old if keep else new,
          optim.is_frozen(new, frozen),
          state.model_state[name],
          new,
      )
    # First whole, or XLA would shard in the forward and the backward pass, too,
    # and exchange activations.
    used = grads, state.params, model_state
    if placed is not None:
      for shardings in whole, partition.sharded(mesh, used):
        used = jax.lax.with_sharding_constraint(used, shardings)
    grads, params, newest = used
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = state.ema
    if ema is not None:
      # A short past is weighed less, or the random start would be averaged.
      decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      newest = {'params': params, **newest}
      ema = jax.tree.map(
          # The old where both are equal, to the bit: what is frozen is.
          lambda old, new: (old + (1 - decay) * (new - old)).astype(old.dtype)
          if jnp.issubdtype(old.dtype, jnp.floating)
          else new,  # A count or a mask.
          ema,
          newest,
      )
    metrics = {
        'loss': loss,
        **metrics,
        'learning_rate': schedule(state.step),
        'grad_norm': optax.global_norm(grads),
        'param_norm': optax.global_norm(params),
    }
    new_state = TrainState(state.step + 1, params, model_state, opt_state, ema)
    return new_state, metrics

  whole, rows = partition.replicated(mesh), partition.over_batch(mesh)
  return jax.jit(
      train_step,
      donate_argnums=0,
      in_shardings=(placed or whole, rows, whole),
      out_shardings=(placed or whole, whole),
  )


def create_predict(
    task: Any, mesh: Mesh
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
  """Returns the compiled prediction: (variables, batch) -> outputs.

  The outputs are replicated, so that every process can count all of them.
  """
  whole, rows = partition.replicated(mesh), partition.over_batch(mesh)
  return jax.jit(task.predict, in_shardings=(whole, rows), out_shardings=whole)
