"""A hundred bad inputs, each of which is to end in one line; as data.

`cases()` yields (kind, program, arguments, words that the line holds), with
'{d}' for the directory that `write_files` fills. Nothing may be left there.
"""

import json
import pathlib
import shlex
import shutil

import commands
import numpy as np
import pictures
import tiny
import trained

_HUGE = '9' * 20
_OTHERS = 'from configs import digits\ndef get_config():\n'
_OTHERS += '  config = digits.get_config().to_dict()\n'
_CONFIGS = {
    'syntax': 'x = 1 +',
    'null': 'x = 1\0',
    'nothing': 'x = 1',
    'number': 'get_config = 3',
    'none': 'def get_config():\n  pass',
    'list': 'def get_config():\n  return [1, 2]',
    'raises': 'def get_config():\n  raise KeyError("no\\nsuch")',
    'exits': 'def get_config():\n  raise SystemExit("bye")',
    'wants': 'def get_config(size):\n  return {}',
    'odd': f'{_OTHERS}  return dict(config, batch_size=object())',
    'keys': f'{_OTHERS}  return {{**config, 1: 2}}',
    'imports': 'import nothing_of_that_name',
    'deep': 'def get_config():\n  return get_config()',
}


def write_files(d: pathlib.Path) -> None:
  """Writes what the inputs name."""
  (d / 'empty').mkdir()
  (d / 'file').write_text('hello')
  (d / 'loop').symlink_to('loop')
  for name, text in _CONFIGS.items():
    (d / f'{name}.py').write_text(text)
  (d / 'latin.py').write_bytes(b'x = "\xe9"')
  config = tiny.get_config(aw_conv=False)
  trained.write_run(d / 'run', config, channels=1)
  (d / 'run/metrics.jsonl').write_text('{"step": 1, "train/loss": 1.0}\n')
  whole = json.loads((d / 'run/config.json').read_text())
  for name, content in {
      'run_list': [],
      'run_number': 3,
      'run_odd': {**whole, 'data': 3},
      'run_null': {**whole, 'model': None},
      'run_name': {**whole, 'task': {'name': [1]}},
      'run_dtype': {**whole, 'model': {**whole['model'], 'dtype': {}}},
      'run_huge': {**whole, 'seed': int(_HUGE)},
      'run_none': whole,
  }.items():
    (d / name).mkdir()
    (d / name / 'config.json').write_text(json.dumps(content))
  for name, data in {'bytes': b'\xff\xfe\0', 'deep': b'[' * 100_000}.items():
    (d / f'run_{name}').mkdir()
    (d / f'run_{name}/config.json').write_bytes(data)
  shutil.copytree(d / 'run', d / 'run_damaged')
  for path in (d / 'run_damaged/checkpoints/0').rglob('*'):
    if path.is_file():
      path.write_bytes(b'\0' * 20)
  for name, text in {
      'rows_half': '{"step": 1\n{"step": 2}\n',
      'rows_list': '[]\n[]\n',
      'rows_word': '{"step": 1, "train/loss": "low"}\n' * 2,
      'rows_none': '{"train/loss": 1.0}\n' * 2,
      'rows_huge': f'{{"step": {"9" * 400}}}\n' * 2,
  }.items():
    (d / name).mkdir()
    (d / name / 'metrics.jsonl').write_text(text)
  (d / 'rows_dir/metrics.jsonl').mkdir(parents=True)
  for name, data in {
      'zeros.safetensors': bytes(40),
      'short.safetensors': b'\x09',
      'long.safetensors': b'\xff' * 8 + b'{}',
      'text.pth': b'hello',
      'empty.pth': b'',
      'pickle.pth': b"cos\nsystem\n(S'true'\ntR.",
      'text.npz': b'hello',
  }.items():
    (d / name).write_bytes(data)
  image = pictures.encode(pictures.smooth(20, 20, 0), 'PNG')
  for name, data in {
      'good': image,
      'bad': b'hello',
      'half': image[:99],
  }.items():
    for label in 'ab':
      (d / f'{name}_images/train/{label}').mkdir(parents=True)
      (d / f'{name}_images/train/{label}/1.png').write_bytes(data)
  (d / 'no_images/train/a').mkdir(parents=True)
  entry = dict(id=1, file_name='1.png', width=20, height=20)
  box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], iscrowd=0)
  box['area'] = 25
  kind = dict(id=1, name='ant')
  whole = dict(images=[entry], annotations=[box], categories=[kind])
  for name, content in {
      'text': 'hello',
      'list': [],
      'few': dict(images=3),
      'width': {**whole, 'images': [{**entry, 'width': '64'}]},
      'twice': {**whole, 'categories': [kind, kind]},
      'none': {**whole, 'images': []},
      'box': {**whole, 'annotations': [{**box, 'bbox': [1, 2, 'x']}]},
      'class': {**whole, 'annotations': [{**box, 'category_id': 7}]},
  }.items():
    (d / f'coco_{name}/train').mkdir(parents=True)
    (d / f'coco_{name}/train/1.png').write_bytes(image)
    (d / f'coco_{name}/annotations').mkdir()
    text = json.dumps(content) if name != 'text' else content
    (d / f'coco_{name}/annotations/train.json').write_text(text)
  np.save(d / 'array.npy', np.zeros(3))


_NAMES = dict(
    tiny=commands.TINY,
    scenes=f'--config={commands.ROOT}/configs/digit_scenes.py',
    huge=_HUGE,
)

# A kind; the program; then an input a line: arguments | words.
INPUTS = {
    (
        'flags',
        'train',
        '',
    ): (
        r"""
| --config or --workdir is missing
--workdir={d}/out | --config or --workdir is missing
{tiny} | --config or --workdir is missing
{tiny} {out} extra | unexpected argument 'extra'
{tiny} {out} --batchsize=3 | did you mean 'config.batch_size'?
{tiny} {out} --wrkdir=x | (did you mean 'workdir'?)
{tiny} {out} --num_processes=two | --num_processes='two'
{tiny} {out} --num_processes=2 | --coordinator=host:port, not None
{tiny} {out} --coordinator=here --num_processes=2 --process_id=0 | not 'here'
{tiny} {out} --coordinator=a:1 --num_processes=2 --process_id=2 | process_id=2
{tiny} --workdir | --workdir
--config= {out} | ''
{out} --config.seed=1 | --config.seed needs --config
"""
    ),
    (
        'configs',
        'train',
        '{out}',
    ): (
        r"""
--config={d}/nowhere.py | unknown config file
--config={d} | unknown config file
--config={d}/syntax.py | SyntaxError
--config={d}/null.py | cannot be read
--config={d}/latin.py | cannot be read
--config={d}/file | cannot be read
--config={d}/nothing.py | no function get_config
--config={d}/number.py | no function get_config
--config={d}/none.py | returned None
--config={d}/list.py | returned [1, 2]
--config={d}/raises.py | KeyError
--config={d}/exits.py | bye
--config={d}/wants.py | size
--config={d}/odd.py | config.batch_size=<object object
--config={d}/keys.py | unknown config.1;
--config={d}/imports.py | nothing_of_that_name
--config={d}/deep.py | RecursionError
--config={d}/loop | unknown config file
{tiny}:modle=resnet18 | did you mean 'model'?
{tiny}:model | is not key=value
{tiny}:model=resnet19 | did you mean 'resnet18'?
{tiny}:aw_conv=maybe | aw_conv='maybe'
{tiny}:attention=sea | attention='sea'
"""
    ),
    (
        'numbers',
        'train',
        '{tiny} {out}',
    ): (
        r"""
--config.seed={huge} | config.seed=9999
--config.seed=-1 | config.seed=-1 must be
--config.seed=1.5 | config.seed=1.5 must be
--config.num_epochs=1e300 | config.num_epochs=1e+300 must be
--config.num_epochs=1e-9 | config.num_epochs=1e-09
--config.num_epochs=nan | config.num_epochs='nan' must be
--config.num_epochs=1e999 | config.num_epochs=inf must be
--config.eval_every_epochs=1e308 | config.eval_every_epochs=1e+308 must be
--config.eval_every_epochs=0 | config.eval_every_epochs=0 must be greater than 0
--config.checkpoints_to_keep=1 | config.checkpoints_to_keep=1 must be
--config.log_every_steps={huge} | config.log_every_steps=9999
--config.batch_size=99999999999 | config.batch_size=99999999999 must be
--config.batch_size=80000000 | 80000000 is more than the 1437 examples
--config.batch_size=many | config.batch_size='many' must be
--config.eval_batch_size=99999999999 | config.eval_batch_size=99999999999
--config.accumulation_steps=64 | config.accumulation_steps=64
--config.ema_decay=1 | config.ema_decay=1 must be
--config.model.width=-3 | config.model.width=-3 must be
--config.model.width={huge} | config.model.width=9999
--config.model.norm_momentum=nan | config.model.norm_momentum='nan' must be
--config.model.norm_momentum=2 | config.model.norm_momentum=2 must be
--config.data.image_size=100000 | config.data.image_size=100000
--config.data.num_workers=1000000 | config.data.num_workers=1000000
--config.data.num_threads=1000000 | config.data.num_threads=1000000
--config.eval_batch_size=80000000 | 80000000
--config.data.repeats={huge} | config.data.repeats=9999
--config.optimizer.learning_rate=1e400 | config.optimizer.learning_rate=inf must
--config.optimizer.warmup_epochs=1e308 | config.optimizer.warmup_epochs=1e+308
--config.optimizer.warmup_epochs=9 | is longer than the run
--config.optimizer.warmup_steps={huge} | config.optimizer.warmup_steps=9999
--config.optimizer.options.momentum=1.5 | config.optimizer.options.momentum=1.5
--config.model.norm_momentum=1 | config.model.norm_momentum=1 must be less
--config.model.aw_conv=1 | config.model.aw_conv=1 must be
"""
    ),
    (
        'types',
        'train',
        '{tiny} {out}',
    ): (
        r"""
--config.task.mean="('a',)" | config.task.mean[0]='a' must be
--config.task.mean=() | config.task.mean=(), but the images have
--config.task.mean="(1,2,3)" | config.task.mean=(1.0, 2.0, 3.0)
--config.task.mean=nan | config.task.mean
--config.task.mean=1e300 | config.task.mean[0]=1e+300 must be
--config.task.std=(0.0,) | config.task.std[0]=0.0 must be
--config.optimizer.frozen=3 | '3' is no path below
--config.optimizer.frozen=(3,) | config.optimizer.frozen[0]=3 must be
--config.optimizer.frozen=stemm_* | 'stemm_*' is no path below
--config.init_skip="({{}},)" | config.init_skip
--config.data.augment=flip | config.data.augment='flip'
--config.data.augment=3 | config.data.augment=3 must be
--config.data.augment="(('flip',),)" | config.data.augment[0]=('flip',)
--config.data.augment="((3, {{}}),)" | config.data.augment[0][0]=3
--config.data.augment="(('flip', 3),)" | config.data.augment[0][1]=3
--config.data.augment="(('flipp', {{}}),)" | did you mean 'flip'?
--config.data.augment[0]=x | config.data.augment[0]
--config.=3 | config.
--config.data..name=x | config.data.
--config.data=3 | config.data=3 must hold options by name
--config.data.name=3 | unknown dataset '3'
--config.data.name.x=3 | unknown config.data.name
--config.model.stage_sizes=[] | config.model.stage_sizes=() must
--config.model.stage_sizes=((1,),) | config.model.stage_sizes[0]=(1,) must be
--config.model.dtype=int8 | config.model.dtype='int8' must be
--config.model.aw_options=3 | config.model.aw_options=3 must hold
--config.model.attention_options.reduction=3 | needs config.model.attention
--config.optimizer.schedule_options.boundaries_epochs=5 | boundaries_epochs
--config.model=((((((((((((((((((((( | config.model='((
"""
    ),
    (
        'names',
        'train',
        '{tiny} {out}',
    ): (
        r"""
--config.optimizer.learning_rat=0.1 | did you mean 'learning_rate'?
--config.model.aw_options.gate=tan | did you mean 'tanh'?
--config.model.attention=nones | config.model.attention='nones' must be
--config.optimizer.schedule=cosin | did you mean 'cosine'?
--config.data.name=digitz | did you mean 'digits'?
--config.data.name=folder: | unknown dataset 'folder:'
--config.data.name=tfds:../../x | '../../x'
--config.data.name=tfds:Ünïcode | 'Ünïcode'
--config.data.train_split=trian | did you mean 'train'?
--config.data.train_split=train[50%:20%] | holds no examples
--config.data.train_split=train[x:] | 'train[x:]'
--config.data.eval_split= | split ''
--config.model.num_classes=7 | config.model.num_classes=7 must be 10
--config.model.num_classes=none | config.model.num_classes
--config.task.name=detection | unknown detector 'resnet18'
"""
    ),
    (
        'relations',
        'train',
        '{out}',
    ): (
        r"""
{tiny} --config.model.aw_stages=(9,) | aw_stages=(9,) must be from 1 to 1
{tiny} --config.optimizer.warmup_steps=5 | set one to 0
{tiny} --config.task.bce_threshold=0.2 | config.task.bce_threshold=0.2 needs
{tiny} --config.init_skip=head | needs config.init_from
{tiny}:model=resnet18 --config.model.aw_options.identity_start=true | identity_
{scenes} --config.model.roi_matcher.negative=0.9 | negative=0.9 above positive=
{scenes} --config.model.anchor_matcher.positive=0.1 | above positive=0.1
{scenes} --config.data.canvas=(3,3) | config.data.canvas=(3, 3)
"""
    ),
    (
        'files',
        'train',
        '{tiny}',
    ): (
        r"""
--workdir={d}/file | --workdir='{d}/file'
--workdir={d}/file/x | --workdir='{d}/file/x'
--workdir=/proc/x | --workdir='/proc/x'
--workdir={d}/loop/x | --workdir='{d}/loop/x'
--workdir={d}/run | belongs to a run with another config
{out} --config.init_from= | config.init_from=''
{out} --config.data.dir= | config.data.dir=''
{out} --config.init_from={d}/nothing.pth | neither a file nor a run
{out} --config.init_from={d}/empty | no checkpoint
{out} --config.init_from={d}/zeros.safetensors | cannot be read
{out} --config.init_from={d}/file | unknown format
"""
    ),
    (
        'data',
        'train',
        '{tiny} {out} --config.data.train_split=train'
        ' --config.data.eval_split=train',
    ): (
        r"""
--config.data.name=folder:{d}/nowhere | there is no folder
--config.data.name=folder:{d}/file | there is no folder
--config.data.name=folder:{d}/empty | unknown split 'train'
--config.data.name=folder:{d}/no_images | has no images
--config.data.name=folder:{d}/good_images | more than the 2 examples
--config.data.name=cifar10 --config.data.dir={d}/empty | no data set 'cifar10'
"""
    ),
    (
        'JSON',
        'train',
        '{scenes} {out} --config.data.train_split=train'
        ' --config.data.eval_split=train --config.data.name=coco_json:{d}/',
    ): (
        r"""
nowhere | unknown split 'train'
coco_text | is not of https
coco_list | is not of https
coco_few | is not of https
coco_width | '64'
coco_twice | category 1: the id is that of another one
coco_none | no image
coco_box | 'x'
coco_class | 7
"""
    ),
    (
        'runs',
        'evaluate',
        '--run={d}/',
    ): (
        r"""
nowhere | does not exist
file | is neither a model nor a run
empty | config.json
run_list | config.json
run_number | config.json
run_odd | config.data=3 must hold
run_null | config.model.name is missing
run_name | config.task
run_dtype | config.model.dtype={{}} must be
run_huge | config.seed=9999
run_bytes | run_bytes
run_deep | config.json
run_none | no checkpoint
run_damaged | checkpoint
run --split=nowhere | unknown split of digits 'nowhere'
run --data=nowhere | unknown dataset 'nowhere'
run --data=digit_scenes | does not fit a run of
run --batch_size=0 | --batch_size='0'
run --batch_size=99999999999 | --batch_size='99999999999'
run --batch_size=1.5 | --batch_size='1.5'
run --max_bad_fraction=2 | max_bad_fraction=2.0 must be
run --output={d}/nowhere/x.json | --output='{d}/nowhere/x.json'
run --output={d}/empty | --output='{d}/empty'
run --config={d}/list.py | returned [1, 2]
run --rnu=3 | (did you mean 'run'?)
run --data=folder:{d}/bad_images --split=train | num_classes
"""
    ),
    (
        'runs',
        'predict',
        '',
    ): (
        r"""
--output={d}/o | --run=... is wanted
--run={d}/run --output={d}/o.json | known: .csv, .jpeg, .jpg, .jsonl, .png, none
--run={d}/run --output={d}/nowhere/o.csv | nowhere/o.csv'
--run={d}/run --top=0 --output={d}/o | --top='0'
--run={d}/nowhere --output={d}/o | does not exist
--run={d}/run --output={d}/o --score=2 | --score='2'
--run={d}/run --output={d}/o --score=nan | --score='nan'
--run={d}/run --output={d}/o --max_images=-1 | --max_images='-1'
--run={d}/run --output={d}/o --flip=perhaps | --flip='perhaps'
--run={d}/nothing.pth {scenes} --output={d}/o | neither a file nor a run
--run={d}/nothing.pth {scenes} --output={d}/o --input={d}/no | holds none of
--run={d}/text.pth {scenes} --output={d}/o | cannot be read
"""
    ),
    (
        'runs',
        'explain',
        '--output={d}/x.png',
    ): (
        r"""
| --run=... is wanted
--run={d}/nowhere | does not exist
--run={d}/run --input={d}/no | holds none of
--run={d}/run --input={d}/file | can be read
--run={d}/run --output={d}/nowhere/x.png | --output='{d}/nowhere/x.png'
--run={d}/run --output={d}/x.pgn | unknown suffix of --output: 'pgn'
--run={d}/run --numbers={d}/x.json | unknown suffix of --numbers
--run={d}/run --panels=map | unknown panel 'map'
--run={d}/run --label=1 | --label is for --input
--run={d}/run --input=x --panels=maps --layer=c2 | --layer is for the panel cam
--run={d}/run --input={d}/file --number=1 | --number is for a detector
--run={d}/run --input={d}/file --classes=1 | --classes is of a data set
--run={d}/run --classes=cat | unknown class 'cat'
"""
    ),
    (
        'weights',
        'convert',
        '--output={d}/o',
    ): (
        r"""
--model=resnet18 | --input=... is wanted
--input={d}/file --model=resnet18 | unknown format
--input={d}/text.npz --model=resnet18 | '.npz'
--input={d}/nowhere.pth --model=resnet18 | neither a file nor a run
--input={d}/zeros.safetensors --model=resnet18 | cannot be read
--input={d}/short.safetensors --model=resnet18 | cannot be read
--input={d}/long.safetensors --model=resnet18 | cannot be read
--input={d}/text.pth --model=resnet18 | cannot be read
--input={d}/empty.pth --model=resnet18 | cannot be read
--input={d}/pickle.pth --model=resnet18 | cannot be read
--input={d}/text.pth | give either --model
--input={d}/zeros.safetensors --model=resnet20 | unknown model 'resnet20'
--input={d}/zeros.safetensors --model=resnet18 --attention=sea | 'sea'
--input={d}/zeros.safetensors --model=resnet18 --num_classes={huge} | ='9999
--input={d}/run --push=a | names no model on
--input={d}/run --push=a/b --output=a.safetensors | want such --output
--input={d}/empty | weights without one need a config
--input=hf-hub:a | names no model on the hub; want owner/name
--input={d}/run_damaged | checkpoint
--input={d}/run --output={d}/x.npz | x.npz': '.npz'; known: .safetensors, none
--input={d}/run --output={d}/file | '{d}/file
--input={d}/run --output={d}/nowhere/x.safetensors | nowhere/x.safetensors
"""
    ),
    (
        'numbers',
        'complexity',
        '',
    ): (
        r"""
--side=99999999999 | --side='99999999999'
--side=0 | --side='0'
--models=resnet20 | unknown model 'resnet20'
--models= | must name at least one
--attention=sea | unknown attention 'sea'
--stem=cifra | did you mean 'cifar'?
--num_classes={huge} | --num_classes='9999
--config={d}/none.py | returned None
{scenes} | faster_rcnn
"""
    ),
    (
        'pictures',
        'plot_curves',
        '--output={d}/x.png',
    ): (
        r"""
| name at least one directory
{d}/nowhere | does not exist
{d}/file | does not exist
{d}/rows_half | line 1
{d}/rows_list | line 1
{d}/rows_word | line 1
{d}/rows_none | line 1
{d}/rows_huge | line 1
{d}/rows_dir | metrics.jsonl
{d}/run --output={d}/x.pgn | --output='{d}/x.pgn'
{d}/run --output={d}/nowhere/x.png | --output='{d}/nowhere/x.png'
{d}/run --panels=los | unknown panel 'los'
{d}/run --width=0 | --width='0'
{d}/run --outptu=x.png | (did you mean 'output'?)
"""
    ),
    (
        'measures',
        'benchmarks',
        '',
    ): (
        r"""
| subject
opp | 'opp'
op --batches=0 | --batches
op --batches={huge} | --batches
op --seconds=nan | --seconds
op --implementations=mpa | did you mean 'map'?
network --model=resnet20 | resnet20
network --side=x | --side
data --output=gs://x/y | argument --output: 'gs://x/y'
data --output={d}/nowhere/x | --output='{d}/nowhere/x.json'
op --bacthes=3 | did you mean '--batches'?
"""
    ),
}


def cases(d: pathlib.Path):
  """Yields the kind, program, arguments and words of each."""
  number = 0
  for (kind, program, start), lines in INPUTS.items():
    start += ' ' * (not start.endswith('/'))
    for line in lines.strip().splitlines():
      number += 1
      names = dict(_NAMES, d=d, out=f'--workdir={d}/out{number}')
      arguments, _, words = line.rpartition('|')
      arguments = shlex.split((start + arguments).format(**names))
      yield kind, program, arguments, words.strip().format(**names)
