#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, or on a TPU VM, from your own machine.
#
#   launch/tpu_slice.sh NAME ZONE --config=configs/digits.py \
#       --workdir=gs://BUCKET/digits
#
# Sends what git would see here, installs it, and hands it to systemd, which
# keeps it running when you log out, and starts it again when it fails: up to
# ten times in an hour. The same command starts it anew, with what is here now.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?'name of the slice'} zone=${2:?'its zone'}
shift 2
code=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$code"' EXIT
git ls-files -z --cached --others --exclude-standard \
  | tar --create --gzip --file="$code" --null --files-from=-

on_all() { gcloud compute tpus tpu-vm "$1" --zone="$zone" --worker=all "${@:2}"; }

on_all scp "$code" "$name:awconv.tar.gz"
on_all ssh "$name" --command="set -e
  mkdir -p awconv_jax
  cd awconv_jax
  tar -xzf ../awconv.tar.gz
  launch/host.sh tpu
  sudo systemctl stop awconv 2> /dev/null || true
  sudo systemd-run --unit=awconv --collect --uid=\$(id -u) \\
    --working-directory=\$PWD --property=Restart=on-failure \\
    --property=RestartSec=10 --property=TimeoutStopSec=90 \\
    --property=StartLimitIntervalSec=1h --property=StartLimitBurst=10 \\
    launch/host.sh tpu$(printf ' %q' "$@")"
echo "its output: gcloud compute tpus tpu-vm ssh $name --zone=$zone" \
  "--command='sudo journalctl --follow --unit=awconv'"
