#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, or on a TPU VM, from your own machine.
#
#   launch/tpu_slice.sh NAME ZONE --config=configs/digits.py \
#       --workdir=gs://BUCKET/digits
#
# Sends what git would see here, installs it, and hands it to systemd, which
# keeps it running when you log out, and starts it again when it fails: up to
# ten times in an hour. The same command stops it, and starts it anew with what
# is here now.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?'name of the slice'} zone=${2:?'its zone'}
shift 2
code=$(mktemp)
trap 'rm -f "$code"' EXIT
git ls-files -z --cached --others --exclude-standard \
  | while IFS= read -r -d '' file; do
    # Not what was deleted without a commit.
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
  done \
  | tar --create --gzip --file="$code" --null --files-from=-

on_all() { gcloud compute tpus tpu-vm "$1" --zone="$zone" --worker=all "${@:2}"; }

on_all scp "$code" "$name:awconv.new.tar.gz"
on_all ssh "$name" --command="set -e
  sudo systemctl stop awconv 2> /dev/null || true
  mkdir -p awconv_jax
  cd awconv_jax
  # What was sent the last time, and nothing else: runs may be here.
  [ ! -e ../awconv.tar.gz ] || tar -tzf ../awconv.tar.gz \\
    --quoting-style=literal | xargs -d '\\n' rm -f --
  mv ../awconv.new.tar.gz ../awconv.tar.gz
  tar -xzf ../awconv.tar.gz
  launch/host.sh tpu
  sudo systemd-run --unit=awconv --collect --uid=\$(id -u) \\
    --working-directory=\$PWD --property=Restart=on-failure \\
    --property=RestartSec=10 --property=TimeoutStopSec=90 \\
    --property=StartLimitIntervalSec=1h --property=StartLimitBurst=10 \\
    launch/host.sh tpu$(printf ' %q' "$@")"
echo "its output: gcloud compute tpus tpu-vm ssh $name --zone=$zone" \
  "--command='sudo journalctl --follow --unit=awconv'"
