#!/usr/bin/env bash
# ReMiT mid-training of OLMo-3-7B on Slurm with the values of its own mid-training, from Hugging Face to Hugging Face:
#
#   BASE_HF=... RL_HF=... CORPUS=... RUN_DIR=... sbatch examples/remit_olmo3_7b.sh
#
# BASE_HF is the base model before its long-context stage (a revision of allenai/Olmo-3-1025-7B), RL_HF an RL or RL-Zero
# model. With --dry-run, and without sbatch, it prints the command and the memory per GPU; --dry-run --simulate runs a
# step on fake CUDA tensors. docs/cluster.md has the rest. Not yet run on a GPU.
#SBATCH --job-name=remit_olmo3_7b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# sbatch runs a copy of this file from a spool folder: the project is then found from where the job was submitted.
lib=$(dirname "${BASH_SOURCE[0]}")/lib/cluster.sh
[[ -e $lib ]] || lib=${REMIT_PROJECT:-${SLURM_SUBMIT_DIR:-.}}/examples/lib/cluster.sh
[[ -e $lib ]] || {
  echo "error: $lib: no such file; submit from the repository's root, or set REMIT_PROJECT to it" >&2
  exit 2
}
# shellcheck source=examples/lib/cluster.sh
source "$lib" olmo3_7b "$@"
