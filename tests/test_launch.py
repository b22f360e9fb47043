"""How the processes of a run are found, and the files that launch them."""

import math
import os
import pathlib
import shutil
import subprocess
import sys

import commands
import pytest
import yaml

from awconv_jax.errors import InputError
from awconv_jax.train import processes

# What SLURM 22.05 sets in the script of `sbatch -N2 --ntasks-per-node=1`, ...
BATCH = {
    'SLURM_JOB_ID': '7',
    'SLURM_JOB_NUM_NODES': '2',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '0',
    'SLURM_LOCALID': '0',
}
# ... in the second task of its `srun`, and in a shell of `salloc`.
STEP = BATCH | {
    'SLURM_PROCID': '1',
    'SLURM_STEP_NODELIST': 'node[3-4]',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
}
SHELL = BATCH | {
    'SLURM_STEP_NODELIST': 'node3',
    'SLURM_STEP_NUM_TASKS': '1',
    'SLURM_STEP_TASKS_PER_NODE': '1',
}
ON_ONE_NODE = {'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURM_LOCALID': '1'}
# Of `mpirun -np 2` of Open MPI 4.1, in the second.
MPI = {
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
    'OMPI_MCA_orte_hnp_uri': '2129133568.0;tcp://10.0.0.2:54495',
}
# Of a pod of the second host of a slice on GKE.
GKE = {
    'TPU_WORKER_ID': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost,run-1.run',
    'JOB_COMPLETION_INDEX': '1',
}
# What the server of metadata is asked for otherwise.
ONE_SLICE = {
    'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
    'MEGASCALE_NUM_SLICES': '1',
    'MEGASCALE_SLICE_ID': '0',
}


@pytest.fixture(name='place')
def fixture_place(monkeypatch):
  def place(env, tpu=False):
    for name, value in env.items():
      monkeypatch.setenv(name, value)
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', tpu)
    return processes.place(None, None, None, 5)

  return place


@pytest.mark.parametrize(
    'env, host, number, index, devices',
    [
        (STEP, 'node3', 2, 1, None),
        (STEP | ON_ONE_NODE, 'node3', 2, 1, [1]),
        (
            STEP | ON_ONE_NODE | {'CUDA_VISIBLE_DEVICES': '0'},
            'node3',
            2,
            1,
            None,
        ),
        (
            STEP | ON_ONE_NODE | {'JAX_LOCAL_DEVICE_IDS': '1'},
            'node3',
            2,
            1,
            None,
        ),
        (MPI, '10.0.0.2', 2, 1, [1]),
        (BATCH | MPI, '10.0.0.2', 2, 1, [1]),
    ],
)
def test_processes_are_found_as_jax_finds_them(
    place, env, host, number, index, devices
):
  found = place(env)
  assert found.coordinator.rpartition(':')[0] == host
  assert found[1:] == (number, index, devices)


def test_hosts_of_a_slice_are_found(place):
  assert place(GKE | ONE_SLICE, tpu=True) == ('localhost:8482', 2, 1, None)


@pytest.mark.parametrize(
    'env',
    [
        {},
        {'SLURM_JOB_ID': '7', 'SLURM_JOB_NUM_NODES': '1'},
        {'SLURM_NTASKS': '', 'OMPI_COMM_WORLD_SIZE': ''},
        STEP | {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'},
        {'PMI_SIZE': '1', 'KUBERNETES_SERVICE_HOST': '10.0.0.1'},
    ],
)
def test_one_process_is_alone(place, env, recwarn):
  assert place(env) is None
  assert not recwarn


@pytest.mark.parametrize(
    'env, words',
    [
        (BATCH, 'SLURM_NTASKS=2, but only 1 process .*: put srun before'),
        (SHELL, 'SLURM_NTASKS=2, but only 1 process .*: put srun before'),
        (
            {'SLURM_JOB_ID': '7', 'SLURM_JOB_NUM_NODES': '2'},
            'SLURM_JOB_NUM_NODES=2, but',
        ),
        # As in a container that lets only some variables in.
        (
            {k: v for k, v in STEP.items() if k != 'SLURM_PROCID'},
            'SLURM_NTASKS=2, but only 1 process',
        ),
        ({'SLURM_NTASKS': '4(x2)'}, r'SLURM_NTASKS=4\(x2\), but'),
        # Of Open MPI 5, which JAX does not find by these alone.
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'OMPI_COMM_WORLD_SIZE=2.*: give each'),
        ({'PMI_SIZE': '4'}, 'PMI_SIZE=4, but'),
        (
            {'KUBERNETES_SERVICE_HOST': '::1', 'JOB_COMPLETION_INDEX': '1'},
            r"pip install 'jax\[k8s\]'",
        ),
    ],
)
def test_a_launch_that_leaves_each_alone_is_one_line(place, env, words):
  with pytest.raises(InputError, match=words) as caught:
    place(env)
  assert '--num_processes=1' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert processes.place(None, 1, None, 5) is None


def test_a_port_that_is_none_is_one_line(place):
  with pytest.raises(InputError, match="'node3:x', without .*COORDINATOR_PORT"):
    place(STEP | {'JAX_COORDINATOR_PORT': 'x'})


def test_what_cannot_be_asked_is_one_line(place):
  nobody = {'GCE_METADATA_IP': '127.0.0.1:1'}
  with pytest.raises(InputError, match='^JAX cannot find .*; give each .*=1'):
    place(GKE | nobody, tpu=True)


def test_what_the_flags_say_must_be_whole():
  assert processes.place('host:1', 2, 0, 5) == ('host:1', 2, 0, None)
  for wrong in (('host:1', 2, None), ('host:1', 2, 2), ('host', 2, 0)):
    with pytest.raises(InputError, match='several processes need'):
      processes.place(*wrong, 5)


LAUNCH = commands.ROOT / 'launch'
# Writes down how it was called, and does what the test gave it to do.
STUB = '#!/bin/bash\nprintf "%%s\\n" "%s" "$@" "" >> "$CALLS"\n%s\n'
FLAGS = [
    '--config=mine.py:a=1',
    '--config.model.norm={"a b": (1, 2)}',
    '--x=$y',
]


@pytest.fixture(name='shell')
def fixture_shell(tmp_path, monkeypatch):
  """Runs a launch file among stubs; returns it and the calls of these."""
  monkeypatch.setenv('PATH', f'{tmp_path}/bin', prepend=os.pathsep)
  monkeypatch.setenv('CALLS', f'{tmp_path}/calls')
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('JAX_PLATFORMS')
  (tmp_path / 'bin').mkdir()
  root = tmp_path / 'clone'
  shutil.copytree(LAUNCH, root / 'launch')
  (root / 'pyproject.toml').write_text('1')

  def shell(name, *arguments, **stubs):
    for stub, does in stubs.items():
      path = tmp_path / 'bin' / stub.replace('_', '-')
      path.write_text(STUB % (stub.replace('_', '-'), does))
      path.chmod(0o755)
    (tmp_path / 'calls').write_text('')
    command = [root / 'launch' / name, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    calls = (tmp_path / 'calls').read_text().split('\n\n')[:-1]
    return done, [call.split('\n') for call in calls]

  return shell


PYTHON = 'mkdir -p .venv/bin; cp "$(which python)" .venv/bin/python'


def test_a_host_installs_what_has_changed_and_trains(shell, tmp_path):
  stubs = dict(uv=PYTHON, python='echo $JAX_PLATFORMS; exit 7')
  for extra in 'cuda13', 'tpu', 'cuda13,prepare':
    done, calls = shell('host.sh', extra, *FLAGS, **stubs)
    assert [call[:2] for call in calls[:-1]] == [['uv', 'venv'], ['uv', 'pip']]
    assert calls[1][-1] == f'.[train,gcs,{extra}]'
    assert calls[-1] == ['python', 'train.py', *FLAGS]
    assert done.returncode == 7
    assert done.stdout == ('tpu\n' if extra == 'tpu' else 'cuda\n')
  _, calls = shell('host.sh', 'tpu', *FLAGS)
  assert len(calls) == 1
  assert shell('host.sh', 'tpu')[1] == []
  (tmp_path / 'clone/pyproject.toml').write_text('2')
  assert len(shell('host.sh', 'tpu')[1]) == 2
  assert 'tpu or cuda13' in shell('host.sh')[0].stderr


def test_slurm_has_what_was_stopped_go_on(shell, monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_CPUS_ON_NODE', '5')
  # Stops are no failures, of which the fourth is the last.
  codes = [143, 1, 143, 7, 1, 143, 1, 0, 1]
  for index, code in enumerate(codes):
    done, (srun, *calls) = shell(
        'slurm.sh', *FLAGS, srun=f'exit {code}', scontrol=''
    )
    assert srun[-len(FLAGS) - 1 :] == ['train.py', *FLAGS]
    requeued = code and index != 6
    assert calls == [['scontrol', 'requeue', '7']] * bool(requeued), index
    assert done.returncode == code


@pytest.mark.parametrize('tasks, cpus', [(None, 5), (2, 2), (8, 1)])
def test_tasks_of_a_node_share_its_cpus(shell, monkeypatch, tasks, cpus):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_CPUS_ON_NODE', '5')
  if tasks:
    monkeypatch.setenv('SLURM_NTASKS_PER_NODE', str(tasks))
  (srun,) = shell('slurm.sh', *FLAGS, srun='')[1]
  assert f'--cpus-per-task={cpus}' in srun


def test_a_slice_is_sent_the_code_and_has_systemd_run_it(shell, tmp_path):
  subprocess.run(['git', 'init', '-q', tmp_path / 'clone'], check=True)
  (tmp_path / 'clone/.gitignore').write_text('runs/')
  (tmp_path / 'clone/mine.py').write_text('1')
  (tmp_path / 'clone/runs').mkdir()
  (tmp_path / 'clone/runs/large').write_text('1')
  ssh = (
      'cd ~; [[ $4 = scp ]] && cp "$7" "${8#*:}" && exit\n'
      'for a; do [[ $a = --command=* ]] && bash -c "${a#*=}"; done'
  )
  command = 'tpu_slice.sh', 'one', 'zone-b', *FLAGS
  stubs = dict(gcloud=ssh, sudo='"$@"', uv=PYTHON)
  # Before anything is replaced.
  stubs['systemctl'] = 'test -e ~/awconv.new.tar.gz && echo stopped; exit 5'
  stubs['systemd_run'] = 'while [[ $1 = --* ]]; do shift; done; "$@"'
  stubs['python'] = ''
  done, calls = shell(*command, **stubs)
  assert done.returncode == 0, done.stderr
  assert '--command=' in done.stdout
  every = {'--zone=zone-b', '--worker=all'}
  assert all(every <= {*c} for c in calls if c[0] == 'gcloud')
  assert calls[-1] == ['python', 'train.py', *FLAGS]
  assert (tmp_path / 'awconv_jax/mine.py').exists()
  assert not (tmp_path / 'awconv_jax/runs').exists()
  # Again, with a file less that git still lists, and a run on the host.
  subprocess.run(['git', 'add', '.'], cwd=tmp_path / 'clone', check=True)
  (tmp_path / 'clone/mine.py').unlink()
  (tmp_path / 'awconv_jax/theirs').write_text('1')
  done, calls = shell(*command)
  assert done.returncode == 0, done.stderr
  assert 'stopped\n' in done.stdout
  assert not (tmp_path / 'awconv_jax/mine.py').exists()
  assert (tmp_path / 'awconv_jax/theirs').exists()
  assert (tmp_path / 'awconv_jax/launch/host.sh').exists()


def test_the_hosts_of_gke_are_those_of_its_slice():
  job_set = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
  (slices,) = job_set['spec']['replicatedJobs']
  job = slices['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  shape = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = math.prod(map(int, shape.split('x')))
  hosts = chips // container['resources']['limits']['google.com/tpu']
  assert job['parallelism'] == job['completions'] == hosts


def test_the_shell_files_are_sound():
  beside = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  found = subprocess.run(
      [shutil.which('shellcheck', path=beside), *LAUNCH.glob('*.sh')],
      capture_output=True,
      text=True,
  )
  assert found.returncode == 0, found.stdout


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiles')
def test_tasks_of_slurm_train_as_one(tmp_path):
  here = {
      'SLURM_STEP_NODELIST': '127.0.0.1',
      'JAX_COORDINATOR_PORT': str(commands.free_port()),
  }
  given = commands.TINY, f'--workdir={tmp_path}', '--config.num_epochs=0.1'
  both = [
      commands.start(
          *('train.py', *given), env=STEP | here | {'SLURM_PROCID': str(task)}
      )
      for task in range(2)
  ]
  ends = [process.communicate(timeout=300) for process in both]
  assert [process.returncode for process in both] == [0, 0], ends
  assert '2 cpu device(s), 2 process(es)' in ends[0][0]
