#!/bin/bash
# A search on all hosts of a Cloud TPU slice, started from a machine that has gcloud and stays on:
#
#     gcloud compute tpus tpu-vm create highway --zone=us-west4-a --accelerator-type=v5litepod-64 \
#       --version=v2-alpha-tpuv5-lite
#     TPU=highway ZONE=us-west4-a WORKDIR=/mnt/shared/mnist_depth100 launch/tpu_pod.sh --config=mnist_depth100
#
# If there is no capacity, `gcloud compute tpus queued-resources create` takes the same options and waits. TPUs after v6e
# are available only on Google Kubernetes Engine.
#
# Run it from the repository's root. Its arguments are passed to the program. It copies the checked-out commit to the
# hosts, installs it there and runs it. After an interruption or preemption, the same command resumes from the last
# checkpoint, on a slice of any size.
#
# TPU, ZONE    the slice's name and zone
# WORKDIR      a directory that every host has mounted from the same Filestore or bucket
# CONFIG, PROGRAM    as below
# DATA_DIR     where prepared TFDS datasets are on every host; may be empty
set -euo pipefail

: "${TPU:?is not set; it must be the name of the TPU slice}"
: "${ZONE:?is not set; it must be the zone of the TPU slice}"
: "${WORKDIR:?is not set; it must be a directory that all hosts share}"
config=${CONFIG:-mnist_depth100}
program=${PROGRAM:-experiments.search}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:highway-jax.tar.gz" --zone="$ZONE" --worker=all

# The hosts' Python may be older than 3.11, so uv installs a newer one.
on_all_hosts "mkdir -p highway-jax && tar -xzf highway-jax.tar.gz -C highway-jax && cd highway-jax && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && \
python3 -m uv pip install --quiet --editable '.[tpu]'"

command=(.venv/bin/python -m "$program" --config="$config" --workdir="$WORKDIR")
if [[ -n ${DATA_DIR:-} ]]; then
  command+=(--config.data_dir="$DATA_DIR")
fi
# JAX finds the other hosts by itself. Every word is quoted for the remote shell.
on_all_hosts "cd highway-jax && exec $(printf '%q ' "${command[@]}" "$@")"
