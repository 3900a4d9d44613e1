# Functions of the cluster scripts (examples/remit_*.sh): settings, and the run from import to export. Sourced, not run.
# docs/cluster.md describes every variable.
# shellcheck shell=bash
PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=examples/lib/slurm.sh
source "$PROJECT/examples/lib/slurm.sh"
# shellcheck source=examples/lib/convert.sh
source "$PROJECT/examples/lib/convert.sh"

die() { echo "error: $*" >&2; exit 2; }
say() { echo "> $(date -u +%H:%M:%S) $*"; }

# need VARIABLE "what it must hold": end the job if it is unset or empty.
need() { [[ -n ${!1:-} ]] || die "$1 is not set: give $2 (docs/cluster.md lists the variables)"; }

# number VARIABLE...: end the job unless each holds a whole number above zero.
number() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name is '${!name}': expected a whole number above 0"
  done
}

# The paper's common settings (appendix D) and what it leaves open; each can be set from outside.
settings() {
  need BASE_HF "the Hugging Face folder of the model to train"
  need CORPUS "the prefix of a corpus written by tools/preprocess_corpus.py, or Megatron's list 'weight prefix ...'"
  need RUN_DIR "the folder for this run's checkpoints, logs and exported model, on a file system that all nodes share"
  OBJECTIVE=${OBJECTIVE:-remit}
  [[ $OBJECTIVE == ntp ]] || need RL_HF "the Hugging Face folder of the RL model of the same tokenizer, the reference"
  RUN_DIR=$(realpath -m "$RUN_DIR")
  IMPORT_DIR=$(realpath -m "${IMPORT_DIR:-$(dirname "$RUN_DIR")/imported}")
  [[ -d $BASE_HF ]] || die "BASE_HF=$BASE_HF: no such folder"
  [[ $OBJECTIVE == ntp || -d $RL_HF ]] || die "RL_HF=$RL_HF: no such folder"
  # Whole paths: inside a container the working folder is another.
  BASE_HF=$(realpath "$BASE_HF") RL_HF=${RL_HF:+$(realpath "$RL_HF")}
  data_path

  EPSILON=${EPSILON:-0.2} MIN_LR=${MIN_LR:-1e-7} TOKENS=${TOKENS:-50000000000}
  WARMUP_ITERS=${WARMUP_ITERS:-0} SEED=${SEED:-1234}
  TP=${TP:-1} PP=${PP:-1} MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-1}
  REFERENCE_MICRO_BATCH_SIZE=${REFERENCE_MICRO_BATCH_SIZE:-$MICRO_BATCH_SIZE}
  SAVE_INTERVAL=${SAVE_INTERVAL:-500} EVAL_INTERVAL=${EVAL_INTERVAL:-500} EVAL_ITERS=${EVAL_ITERS:-10}
  SPLIT=${SPLIT:-99,1,0} PRECISION=${PRECISION:-bf16} EXTRA_ARGS=${EXTRA_ARGS:-}
  # Without Slurm (--dry-run): as many nodes as the script asks for.
  NODES=${SLURM_NNODES:-${NODES:-$(sed -n 's/^#SBATCH --nodes=//p' "$0")}}
  GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
  MAX_RESTARTS=${MAX_RESTARTS:-100}
  number SEQ_LENGTH GLOBAL_BATCH_SIZE MICRO_BATCH_SIZE REFERENCE_MICRO_BATCH_SIZE TOKENS TP PP NODES GPUS_PER_NODE
  local tokens_per_step=$((GLOBAL_BATCH_SIZE * SEQ_LENGTH))
  TRAIN_ITERS=${TRAIN_ITERS:-$(((TOKENS + tokens_per_step - 1) / tokens_per_step))}
  number TRAIN_ITERS SAVE_INTERVAL
  # The ranks of a node share its cores.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
  # Megatron asks for it under tensor parallelism: kernels start in the order in which they were queued.
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
  environment
}

# CORPUS in DATA_PATH=(...): weights as they are, prefixes as whole paths; the prefixes also in PREFIXES=(...).
data_path() {
  local words word
  read -ra words <<< "$CORPUS"
  DATA_PATH=() PREFIXES=()
  for word in "${words[@]}"; do
    if [[ ! $word =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]]; then
      word=$(realpath -m "$word")
      PREFIXES+=("$word")
    fi
    DATA_PATH+=("$word")
  done
}

# Megatron's flags of this run, in training=(...); the load flags depend on what has been saved and come last.
training_flags() {
  training=(
    --use-checkpoint-args --exit-on-missing-checkpoint
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$BASE/hf"
    --objective "$OBJECTIVE"
    --data-path "${DATA_PATH[@]}" --split "$SPLIT" --seq-length "$SEQ_LENGTH" --seed "$SEED"
    --micro-batch-size "$MICRO_BATCH_SIZE" --global-batch-size "$GLOBAL_BATCH_SIZE" --train-iters "$TRAIN_ITERS"
    --lr "$LR" --min-lr "$MIN_LR" --lr-decay-style cosine --lr-warmup-iters "$WARMUP_ITERS"
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
    --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP"
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    --save "$RUN_DIR/checkpoints" --save-interval "$SAVE_INTERVAL" --exit-signal-handler
    --eval-interval "$EVAL_INTERVAL" --eval-iters "$EVAL_ITERS"
    --tensorboard-dir "$RUN_DIR/tensorboard" --tensorboard-log-interval 1 --log-interval 1
  )
  [[ $TP == 1 ]] || training+=(--sequence-parallel)
  [[ $PRECISION == fp32 ]] || training+=("--$PRECISION")
  [[ $OBJECTIVE == ntp ]] || training+=(
    --reference-load "$REFERENCE" --remit-epsilon "$EPSILON"
    --reference-micro-batch-size "$REFERENCE_MICRO_BATCH_SIZE"
  )
  local extra
  read -ra extra <<< "$EXTRA_ARGS"
  training+=("${extra[@]}")
  if (($(saved_iteration) > 0)); then
    training+=(--load "$RUN_DIR/checkpoints")
  else
    training+=(--load "$BASE" --finetune)
  fi
}

# The last iteration in the run's own checkpoints, 0 if there is none.
saved_iteration() {
  local tracker=$RUN_DIR/checkpoints/latest_checkpointed_iteration.txt
  if [[ -f $tracker ]]; then cat "$tracker"; else echo 0; fi
}

torchrun_command() {
  command=(
    "$PYTHON" -m megatron_remit.launch.node
    --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"
    -m megatron_remit.pretrain "${training[@]}"
  )
}

# Checks the corpus against the tokenizer and the batch against the layout, and estimates the memory.
plan_command() {
  planning=("$PYTHON" "$TOOLS/plan_run.py" --base-hf "$BASE_HF" --gpus $((NODES * GPUS_PER_NODE)))
  [[ $OBJECTIVE == ntp ]] || planning+=(--reference-hf "$RL_HF")
  planning+=(-- "${training[@]}")
}

train() {
  local before status=0
  before=$(saved_iteration)
  say "training from step $before to $TRAIN_ITERS on $NODES x $GPUS_PER_NODE GPUs"
  wait_for_child step "$NODES" "${command[@]}" || status=$?
  if (($(saved_iteration) >= TRAIN_ITERS)); then return; fi
  # Workers that were asked to stop save and end with status 0. 138 and 143: ended by USR1 or TERM while starting.
  if ((interrupted || status == 0 || status == 138 || status == 143)); then requeue; fi
  die "training ended with status $status at step $(saved_iteration); the first 'error:' or traceback above says why"
}

# print_command word...: as a shell would take it, a flag a line.
print_command() {
  local word quoted
  printf %s "$1"
  for word in "${@:2}"; do
    quoted=$word
    [[ $word =~ ^[A-Za-z0-9_./:=,+@-]+$ ]] || printf -v quoted %q "$word"
    if [[ $word == -* ]]; then printf ' \\\n    %s' "$quoted"; else printf ' %s' "$quoted"; fi
  done
  echo
}

dry_run() {
  print_command srun "${step_flags[@]}" --nodes="$NODES" --ntasks="$NODES" "${command[@]}"
  if [[ -n ${CONTAINER_IMAGE:-} ]]; then
    # The image cannot be entered without Slurm: the same script inside it does what follows.
    echo "For the check of the corpus and the memory, run this script with --dry-run inside the image."
    return
  fi
  PYTHONWARNINGS=ignore "${planning[@]}"
}

remit_main() {
  local dry=
  case ${1:-} in
    "") ;;
    --dry-run) dry=1 ;;
    *) die "unknown argument '$1'; settings are environment variables, the only argument is --dry-run" ;;
  esac
  settings
  BASE=$(import_folder "$BASE_HF")
  [[ $OBJECTIVE == ntp ]] || REFERENCE=$(import_folder "$RL_HF")
  training_flags
  torchrun_command
  plan_command
  if [[ -n $dry ]]; then dry_run; return; fi
  [[ -n ${SLURM_JOB_ID:-} ]] || die "this is a Slurm script: submit it with sbatch, or pass --dry-run"
  trap on_signal USR1 TERM
  mkdir -p "$RUN_DIR"/{checkpoints,tensorboard} "$IMPORT_DIR"
  one_job_only
  if (($(saved_iteration) == 0)); then
    wait_for_child step 1 "${planning[@]}" || stop_or_die $? "these settings cannot be run"
  fi
  import_once "$BASE_HF" "$BASE"
  [[ $OBJECTIVE == ntp ]] || import_once "$RL_HF" "$REFERENCE"
  if (($(saved_iteration) < TRAIN_ITERS)); then train; fi
  export_once
  say "done: $RUN_DIR/hf"
}
