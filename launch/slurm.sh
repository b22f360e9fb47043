#!/usr/bin/env bash
# Trains on nodes of SLURM: a process on each, with all GPUs that it has there.
#
#   launch/host.sh cuda13      # Once; the nodes must see this directory.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/digits.py \
#       --workdir=runs/digits
#
# What follows can be overridden before launch/slurm.sh, such as by
# `sbatch --gpus-per-node=4`; --account and --partition are your site's.
#SBATCH --job-name=awconv
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=awconv-%j.log
# Two minutes before the time is up: it saves, and ends with 143.
#SBATCH --signal=TERM@120
set -uo pipefail
export JAX_PLATFORMS="${JAX_PLATFORMS-cuda}"
cpus=$((SLURM_CPUS_ON_NODE / ${SLURM_NTASKS_PER_NODE:-1}))
srun --cpus-per-task="$((cpus > 1 ? cpus : 1))" --wait=30 \
  .venv/bin/python train.py "$@"
code=$?
# What was asked to stop goes on later, and so does what failed, three times.
# SLURM_RESTART_COUNT would count the stops, too.
failures="awconv-$SLURM_JOB_ID.failures"
case $code in
  0) rm -f "$failures" ;;
  143) scontrol requeue "$SLURM_JOB_ID" ;;
  *)
    echo "$(date) exit status $code" >> "$failures"
    [[ $(wc -l < "$failures") -gt 3 ]] || scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit $code
