#!/bin/bash
# A search on all hosts of a Cloud TPU slice, from a machine that has gcloud and stays on:
#
#     gcloud compute tpus tpu-vm create highway --zone=us-west4-a --accelerator-type=v5litepod-64 \
#       --version=v2-alpha-tpuv5-lite
#     TPU=highway ZONE=us-west4-a WORKDIR=/mnt/shared/mnist_depth100 launch/tpu_pod.sh --config=mnist_depth100
#
# Where there is no capacity at once, `gcloud compute tpus queued-resources create` takes the same options and waits. TPUs
# after v6e are not available this way, but on Google Kubernetes Engine.
#
# Run it from the repository's root; its arguments are the program's. It copies the commit that is checked out to the
# hosts, installs it there and runs it. Interrupted or preempted, the same command goes on from the last checkpoint, on
# a slice of any size.
#
# TPU, ZONE    the slice's name and zone
# WORKDIR      a directory that every host has mounted from the same Filestore or bucket
# CONFIG, PROGRAM, DATA_DIR    see below; DATA_DIR, if not empty, is where prepared TFDS datasets are on every host
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

# The hosts' own Python may be older than 3.11; uv brings one.
on_all_hosts "mkdir -p highway-jax && tar -xzf highway-jax.tar.gz -C highway-jax && cd highway-jax && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && \
python3 -m uv pip install --quiet --editable '.[tpu]'"

command=(.venv/bin/python -m "$program" --config="$config" --workdir="$WORKDIR")
if [[ -n ${DATA_DIR:-} ]]; then
  command+=(--config.data_dir="$DATA_DIR")
fi
# JAX finds the other hosts by itself. Every word is quoted for the shell on the other side.
on_all_hosts "cd highway-jax && exec $(printf '%q ' "${command[@]}" "$@")"
