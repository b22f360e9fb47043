"""The README.md of a trained network, from what is known of it."""

from collections.abc import Mapping
from typing import Any

import jax

from awconv_jax import text_table
from awconv_jax.errors import some

_KINDS = {
    'classification': 'image-classification',
    'detection': 'object-detection',
    'segmentation': 'image-segmentation',
}
_TEXT = """\
---
library_name: awconv_jax
pipeline_tag: {kind}
tags: [jax, flax, awconv_jax, {kind}]
---

# {title}

{source} awconv_jax {version}, which has AW-convolution
(https://arxiv.org/abs/2108.08205).

```python
import awconv_jax

model = awconv_jax.load('.')  # This directory, or its model.safetensors alone.
```

Tools take it as `--run=`, with no config: `python -m awconv_jax.tools.evaluate
--run=...` measures it on the data that it was evaluated on. Nobody should trust
it on images of another kind without measuring.

## Results

{results}

## What it is

{facts}

`config.json` has the whole config, all options of the network among them.
"""


def text(told: Mapping[str, Any], variables: Any, dtype: str) -> str:
  """Returns the model card in Markdown.

  Args:
    told: the description; see `weights.described`.
    variables: of the network, 'params' among them.
    dtype: of the kernels in the file.
  """
  config = told['config']
  data, task, model = (config[name] for name in ('data', 'task', 'model'))
  backbone = model.get('backbone') or model
  attention = 'AW-' * backbone['aw_conv'] + (
      f'{backbone["attention"]}-' if backbone['attention'] else ''
  )
  network = f'{attention}{backbone["name"]}'
  if backbone is not model:
    network = f'{model["name"]} with {network}'
  metrics = dict(told['metrics'])
  step = metrics.pop('step', None)
  of = metrics.pop('data', data['name'])
  split = metrics.pop('split', data['eval_split'])
  when = '' if step is None else f' at step {step:,}'
  results = 'None are known.'
  if metrics:
    named = {n.removeprefix('eval/'): value for n, value in metrics.items()}
    rows = [
        dict(measure=n, value=int(v) if n.startswith('num_') else v)
        for n, v in named.items()
    ]
    results = f'On the split `{split}` of `{of}`{when}:\n\n'
    results += text_table.make(rows, text_table.measured)
  pixels = data.get('eval_image_size') or data.get('canvas')
  classes = told['classes'] or [f'{model["num_classes"]}, without names']
  optimizer = config['optimizer']
  # What is not trained here was trained by a recipe that no file tells.
  recipe = {
      'recipe': (
          f'{config["num_epochs"]:g} epochs in batches of '
          f'{config["batch_size"]}, {optimizer["name"]} with a learning rate '
          f'of {optimizer["learning_rate"]:g} per '
          f'{optimizer["base_batch_size"]} images, weight decay '
          f'{optimizer["weight_decay"]:g}, {optimizer["schedule"]} schedule'
          + f', averages of {config["ema_decay"]:g}' * bool(config['ema_decay'])
      ),
      'seed': config['seed'],
      'started from': config['init_from'] or 'first weights drawn at random',
  }
  facts = {
      'task': task['name'],
      'network': network,
      **({'needs': needs} if (needs := lacking(config)) else {}),
      'parameters': sum(a.size for a in jax.tree.leaves(variables['params'])),
      'weights': f'{told["weights"]}, kernels in {dtype}',
      'images': f'{pixels} pixels, mean {task["mean"]}, std {task["std"]}',
      'classes': some(classes, 20),
      'data': f'{data["name"]}, evaluated on {data["eval_split"]!r}',
      **({'made of': told['origin']} if told['origin'] else recipe),
      'trained at commit': told['commit'] or 'unknown',
      'sha256': told['sha256'],
  }
  rows = [{'': name, 'value': value} for name, value in facts.items()]
  return _TEXT.format(
      kind=_KINDS[task['name']],
      title=f'{network} on {data["name"]}',
      source='Taken over by' if told['origin'] else 'Trained with',
      version=told['version'],
      results=results,
      facts=text_table.make(rows),
  )


def lacking(config: Mapping[str, Any]) -> str:
  """Returns which modules a model needs that are not of the package, or ''."""

  def modules(options):
    for name, value in options.items():
      if isinstance(value, Mapping):
        yield from modules(value)
      elif name in ('attention', 'refinement') and ':' in (value or ''):
        yield value.partition(':')[0]

  found = sorted(set(modules(config['model'])))
  named = f'the module{"s" * (len(found) > 1)} {", ".join(found)}'
  return f'{named}, of which nothing is in it' * bool(found)
