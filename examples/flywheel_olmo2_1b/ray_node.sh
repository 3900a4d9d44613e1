#!/usr/bin/env bash
# One node of a Ray cluster in a Slurm job: ray_node.sh BIN COMMAND ...
#
# srun starts it on every node. The first starts Ray's head, runs COMMAND on it and stops Ray; the others join and stay
# until the head is gone.
set -euo pipefail
bin=$1
shift
port=$((20000 + SLURM_JOB_ID % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

if [[ $SLURM_NODEID -eq 0 ]]; then
  trap '"$bin/ray" stop --force' EXIT
  "$bin/ray" start --head --port="$port"
  for _ in $(seq 120); do
    # The trainer places its learners at once: it needs all nodes.
    [[ $("$bin/ray" list nodes --format json | grep -c '"state": "ALIVE"') -eq $SLURM_NNODES ]] && break
    sleep 5
  done
  "$@"
else
  for _ in $(seq 60); do
    "$bin/ray" start --address="$head:$port" && break
    sleep 5
  done
  while "$bin/ray" status --address="$head:$port" > /dev/null 2>&1; do sleep 5; done
  "$bin/ray" stop --force
fi
