"""Measures AW-convolution beside the plain one, and reading, in one run.

  python -m benchmarks op
  python -m benchmarks op --torch --batches=8
  python -m benchmarks model --cpu_devices=8
  python -m benchmarks roofline --bandwidth_gbs=1e3 --tflops=90
  python -m benchmarks data

Every row of op and model is a ratio to the plain version, measured in the same
run and in turn with it; before that, results are checked against the plainest
form: the vmapped one, or (model, where that is not measured) the loop. Subject
roofline counts FLOPs and bytes on paper; data reads images, beside tf.data
where there is a TensorFlow. Writes the table as text to the screen, and as JSON
and a picture to --output.
"""

from collections.abc import Sequence
import json
import math

from absl import flags
import jax

from awconv_jax import command_line, errors
from awconv_jax.models.attention import ATTENTION
from awconv_jax.ops import aw_conv
from benchmarks import (
    data,
    model,
    op,
    report,
    roofline,
    traffic,
)

FLAGS = flags.FLAGS
SUBJECTS = {'op': op, 'model': model, 'roofline': roofline, 'data': data}
# The form for GPU; its time elsewhere would say nothing.
_GPU_ONLY = 'fused'
# What is compared with the reference.
_FORMS = [n for n in aw_conv.IMPLEMENTATIONS if n not in ('vmap', _GPU_ONLY)]
# What is kept with the rows besides the settings of all subjects.
_KEPT = ('expansion', 'strided', 'model', 'side', 'bandwidth_gbs', 'tflops')
# What a flag is where it is not given, by subject.
DEFAULTS = {
    'op': dict(
        implementations=['auto', *_FORMS],
        batches=['8', '32'],
        seconds=0.6,
    ),
    'model': dict(implementations=['auto'], batches=['8'], seconds=5.0),
    'roofline': dict(
        implementations=[n for n in traffic.FORMS if n != 'plain'],
        batches=['32'],
        seconds=0.0,
    ),
    'data': dict(implementations=[], batches=['64'], seconds=10.0),
}
# What must be at least so much, by subject.
LEAST = {
    'op': dict(expansion=1),
    'model': dict(side=1),
    'roofline': dict(expansion=1),
    'data': dict(side=1, images=1, workers=0),
}


def _check_numbers(subject: str, seconds: float) -> None:
  """Raises InputError for a number that cannot be measured with."""
  for name, least in LEAST[subject].items():
    value = FLAGS[name].value
    if value is not None and value < least:
      raise errors.InputError(f'--{name}={value} must be at least {least}')
  if not 0 <= seconds < math.inf:
    raise errors.InputError(f'--seconds={seconds} must be finite, at least 0')


def _settings(subject: str) -> dict:
  """Returns the flags that all subjects have, checked."""
  settings = {
      name: default if FLAGS[name].value is None else FLAGS[name].value
      for name, default in DEFAULTS[subject].items()
  }
  known = {'auto', *aw_conv.IMPLEMENTATIONS}
  if subject == 'roofline':
    known |= set(traffic.FORMS)
  names = settings['implementations']
  for name in names:
    if name not in known:
      raise errors.unknown_name('implementation', name, known)
  if subject in ('op', 'model'):
    on_gpu = jax.default_backend() == 'gpu'
    if _GPU_ONLY in names and not on_gpu:
      raise errors.InputError(
          f'--implementations={",".join(names)}: {_GPU_ONLY!r} is for GPU; on '
          f'{jax.default_backend()!r} it is no measure, leave it out'
      )
    if on_gpu and subject == 'op' and FLAGS.implementations is None:
      settings['implementations'] = [*names, _GPU_ONLY]
  if FLAGS.dtype not in op.TOLERANCES:
    raise errors.unknown_name('dtype', FLAGS.dtype, op.TOLERANCES)
  for name in FLAGS.attentions:
    if name not in ATTENTION:
      raise errors.unknown_name('attention', name, ATTENTION)
  batches = settings['batches']
  if not batches or not all(b.isdigit() and int(b) for b in batches):
    raise errors.InputError(f'--batches={batches}: want numbers above 0')
  _check_numbers(subject, settings['seconds'])
  settings['batches'] = [int(b) for b in batches]
  return settings | dict(dtype=FLAGS.dtype)


def _run_op(settings):
  return op.run(
      expansion=FLAGS.expansion,
      strided=FLAGS.strided,
      torch=FLAGS.torch,
      **settings,
  )


def _run_model(settings):
  names = settings.pop('implementations')
  return model.run(
      name=FLAGS.model,
      variants=[*FLAGS.attentions, *(f'aw:{name}' for name in names)],
      side=FLAGS.side,
      **settings,
  )


def _run_roofline(settings):
  del settings['seconds']
  device = roofline.create_device(FLAGS.bandwidth_gbs, FLAGS.tflops)
  return roofline.run(expansion=FLAGS.expansion, device=device, **settings)


def _run_data(settings):
  return data.run(
      batches=settings['batches'],
      seconds=settings['seconds'],
      side=FLAGS.side,
      images=FLAGS.images,
      workers=FLAGS.workers,
      interpolations=FLAGS.interpolations,
  )


RUNS = {
    'op': _run_op,
    'model': _run_model,
    'roofline': _run_roofline,
    'data': _run_data,
}


def _use_cpu_devices(number: int) -> None:
  """Makes JAX run on that many CPU devices; 0 leaves it as it is."""
  if number < 0:
    raise errors.InputError(f'--cpu_devices={number} must not be negative')
  if number:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', number)


def main(arguments: Sequence[str]) -> None:
  """Measures the subject that is named, and shows and saves the table."""
  if len(arguments) != 1 or arguments[0] not in SUBJECTS:
    raise errors.unknown_name('subject', ' '.join(arguments), SUBJECTS)
  name, subject = arguments[0], SUBJECTS[arguments[0]]
  _use_cpu_devices(FLAGS.cpu_devices)
  settings = _settings(name)
  report.check_output(FLAGS.output)
  print(json.dumps(report.environment()), flush=True)
  rows = []

  def save(summary):
    return report.save(
        rows,
        summary,
        subject.PICTURE,
        FLAGS.output,
        subject=name,
        **{flag: FLAGS[flag].value for flag in _KEPT},
        **settings,
    )

  try:
    report.show(RUNS[name](dict(settings)), rows)
  except errors.ReportedError:
    if rows:
      print(f'written, as far as it came: {", ".join(save([]))}')
    raise
  summary = subject.summarize(rows)
  if settings['seconds'] and name != 'data':
    summary.append(
        'Medians. Each timed call follows one that is not timed; what takes '
        f'more than --seconds={settings["seconds"]} a call is timed once, '
        'after the call that checked its result, on other inputs.'
    )
  print('\n'.join(summary))
  print(f'written: {", ".join(save(summary))}')


def _define_flags() -> None:
  """Defines the flags; what is None depends on the subject, see DEFAULTS."""
  flags.DEFINE_list(
      'implementations',
      None,
      'Which to measure, beside plain and (op) the vmapped form. Default: op '
      f'all ({_GPU_ONLY} on GPU alone), roofline all, model auto.',
  )
  flags.DEFINE_list(
      'batches',
      None,
      'Batch sizes. Default: op 8,32; model 8; roofline 32; data 64.',
  )
  flags.DEFINE_float(
      'seconds',
      None,
      'Time for each measurement. Default: op 0.6, model 5, data 10.',
  )
  flags.DEFINE_integer(
      'expansion', 16, 'Input channels that share a value (op, roofline).'
  )
  flags.DEFINE_bool(
      'strided', False, 'Measure the convolutions of stride 2, too (op).'
  )
  flags.DEFINE_string('dtype', 'float32', 'Of the computation.')
  flags.DEFINE_string('output', 'benchmark', 'Path of the files, no suffix.')
  flags.DEFINE_integer(
      'cpu_devices', 0, 'Run on so many CPU devices; 0 for what JAX finds.'
  )
  flags.DEFINE_bool(
      'torch', False, "Measure PyTorch's grouped convolution, too (op)."
  )
  flags.DEFINE_string('model', 'resnet50', 'Network (model).')
  flags.DEFINE_list(
      'attentions', [], 'Attentions to measure without AW, as se,cbam (model).'
  )
  flags.DEFINE_integer('side', 224, 'Height and width of images (model, data).')
  flags.DEFINE_float(
      'bandwidth_gbs',
      None,
      "1e9 bytes a second of a device's memory (roofline).",
  )
  flags.DEFINE_float('tflops', None, '1e12 FLOPs a second (roofline).')
  flags.DEFINE_integer('images', 512, 'JPEGs to make and to read (data).')
  flags.DEFINE_integer(
      'workers', None, 'Processes that read; none is one each core (data).'
  )
  flags.DEFINE_list(
      'interpolations',
      ['linear', 'area', 'cubic'],
      'By which images are resized (data); tf.data does it by cubic.',
  )


if __name__ == '__main__':
  _define_flags()
  command_line.run(main)
