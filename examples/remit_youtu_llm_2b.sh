#!/usr/bin/env bash
# ReMiT mid-training of Youtu-LLM-2B on Slurm with the paper's settings (appendix D), from Hugging Face to Hugging Face:
#
#   BASE_HF=... RL_HF=... CORPUS=... RUN_DIR=... sbatch examples/remit_youtu_llm_2b.sh
#
# With --dry-run, and without sbatch, it prints the command and the memory per GPU; --dry-run --simulate runs a step on
# fake CUDA tensors. docs/cluster.md has the rest.
#SBATCH --job-name=remit_youtu_llm_2b
#SBATCH --nodes=16
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
source "$lib" youtu_llm_2b "$@"
