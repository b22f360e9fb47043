"""Tasks: all that the training loop must know of what is learned.

A task is made of a model and of its options. It has the attributes `model`,
`num_classes`, `trains_on` (keys of the batches that the loss reads) and
`create_model` (what makes its models of their options), and these methods:
  init(rng, batch) -> variables
  loss(variables, batch, rng) -> loss, (metrics, updated batch statistics)
  forward(variables, batch) -> the network's outputs; what is counted as MACs
  features(variables, batch) -> arrays by name, those inside of the network
  predict(variables, batch) -> arrays for the evaluator, first axis the batch
  evaluator() -> an object with update(outputs) and compute()
"""

from awconv_jax.tasks.classification import Classification
from awconv_jax.tasks.detection import Detection
from awconv_jax.tasks.segmentation import Segmentation

TASKS = {
    'classification': Classification,
    'detection': Detection,
    'segmentation': Segmentation,
}
