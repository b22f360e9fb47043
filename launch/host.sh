#!/usr/bin/env bash
# Trains on this machine: a TPU VM, or one with GPUs, of which it takes all.
#
#   launch/host.sh tpu --config=configs/digits.py --workdir=runs/digits
#   launch/host.sh cuda13 --config=configs/digits.py --workdir=runs/digits
#   launch/host.sh cuda13,prepare   # Installs alone; these and other extras.
#
# What it needs is installed in .venv the first time, and again whenever
# pyproject.toml has changed. A run that has stopped goes on with the same
# command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:?'which devices: tpu or cuda13'}
shift
export PATH="$HOME/.local/bin:$PATH"
# What was installed for it is what the pyproject.toml kept there asks for.
if ! cmp -s pyproject.toml ".venv/$extra"; then
  # Images of TPU VMs have Python 3.10; uv gets a newer one where there is none.
  command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --allow-existing --python '>=3.11' .venv
  uv pip install --quiet --editable ".[train,gcs,$extra]"
  cp pyproject.toml ".venv/$extra"
fi
[ $# -gt 0 ] || exit 0
# Not on the CPU where there should be more: that it is missing is an error.
devices=${extra%%,*}
export JAX_PLATFORMS="${JAX_PLATFORMS-${devices%13}}"
exec .venv/bin/python train.py "$@"
