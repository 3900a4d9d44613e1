#!/usr/bin/env bash
# The paper's evaluation on Slurm, one GPU for each job: exported models in, a table in the paper's layout out.
#
#   MODELS="ReMiT=runs/remit/hf NTP=runs/ntp/hf" OUT=runs/results sbatch examples/evaluate.sh
#   MODELS=... OUT=... sbatch --array=1-5 examples/evaluate.sh      # the columns shared by five GPUs
#
# With --dry-run, and without sbatch, it prints the commands. docs/evaluation.md has the rest.
#SBATCH --job-name=remit_evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

# sbatch runs a copy of this file from a spool folder: the project is then found from where the job was submitted.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -e $project/examples/evaluate.sh ]] || project=${REMIT_PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}
[[ -e $project/examples/evaluate.sh ]] ||
  fail "$project/examples/evaluate.sh: no such file; submit from the repository's root, or set REMIT_PROJECT to it"

# shellcheck source=examples/lib/arguments.sh
source "$project/examples/lib/arguments.sh" "$@"
[[ -n ${MODELS:-} ]] || fail "MODELS is not set: give NAME=DIR of each model, with blanks between"
[[ -n ${OUT:-} ]] || fail "OUT is not set: give the folder of the results, on a file system that all nodes share"
[[ -n $dry_run || -n ${SLURM_JOB_ID:-} ]] || fail "this is a Slurm script: submit it with sbatch, or pass --dry-run"

# shellcheck source=examples/lib/setup.sh
source "$project/examples/lib/setup.sh"
tool=$project/tools/evaluate.py
python=${PYTHON:-${VENV:-$project/.venv}/bin/python}
step=("${setup[@]}")
if [[ -n ${CONTAINER_IMAGE:-} ]]; then
  tool=${CONTAINER_PROJECT:-/opt/megatron-remit}/tools/evaluate.py
  python=${PYTHON:-python}
  mounts=${CONTAINER_MOUNTS:-$PWD:$PWD}
  case ${CONTAINER_RUNTIME:-$CONTAINER_IMAGE} in
    apptainer | singularity | *.sif)
      runtime=${CONTAINER_RUNTIME:-apptainer}
      step=(srun --ntasks=1 "${setup[@]}" "$runtime" exec --nv --no-home --bind "$mounts" "$CONTAINER_IMAGE")
      ;;
    *) step=(srun --ntasks=1 "--container-image=$CONTAINER_IMAGE" "--container-mounts=$mounts" "${setup[@]}") ;;
  esac
elif ! command -v "$python" > /dev/null; then
  fail "$python is not there: set VENV to a virtual environment on a shared file system, or CONTAINER_IMAGE"
fi

command=("$python" "$tool" --out "$OUT" --suite "${SUITE:-base}" --batch-size "${BATCH_SIZE:-8}")
read -ra models <<< "$MODELS"
for model in "${models[@]}"; do command+=(--model "$model"); done
if [[ -n ${COLUMNS_OF_TABLE:-} ]]; then
  read -ra names <<< "$COLUMNS_OF_TABLE"
  command+=(--columns "${names[@]}")
fi
[[ -z ${ALLOW_CODE_EXECUTION:-} ]] || command+=(--allow-code-execution)
[[ -z ${LOCAL_DATA:-} ]] || command+=(--local-data "$LOCAL_DATA")
if [[ -n ${EXTRA_ARGS:-} ]]; then
  read -ra extra <<< "$EXTRA_ARGS"
  command+=("${extra[@]}")
fi
# Each task of an array has every Nth column. Its tasks are numbered from SLURM_ARRAY_TASK_MIN.
if [[ -n ${SLURM_ARRAY_TASK_COUNT:-} ]]; then
  command+=(--part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT")
fi

# Nodes have no network as a rule: the data sets come from the cache that --data-only has filled (HF_HOME).
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
if [[ -n $dry_run ]]; then
  printf '%q ' "${step[@]}" "${command[@]}"
  echo
  exit
fi
# A job that is preempted goes back into the queue (--requeue), and runs the columns that are not there yet.
exec "${step[@]}" "${command[@]}"
