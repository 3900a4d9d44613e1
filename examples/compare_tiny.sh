#!/usr/bin/env bash
# Every method and the controls from one tiny base, several seeds each, on a CPU: docs/results-tiny.md.
#
#   the stages of flywheel_tiny.sh up to the RL reference, once; then for each arm and seed
#   mid-training on the same tokens -> accuracy on held-out problems at several points -> table and curves
#
# Usage: examples/compare_tiny.sh             (about 40 minutes on two cores)
#   RUN_DIR=runs/compare  where everything goes; a finished stage is not run again
#   SEEDS="1 2 3"         order of the data; the base and the references are the same for all
#   ARMS="ntp remit ..."  some of the arms
#   JOBS=2                arms at once, one thread each
#   COMPARE_SMOKE=1       sizes of a few steps, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/.."

RUN_DIR=${RUN_DIR:-runs/compare}
SEEDS=${SEEDS:-1 2 3}
POINTS=${POINTS:-3}                       # evaluations of a run, evenly spaced
EVAL_LIMIT=${EVAL_LIMIT:-500}             # problems of each kind
RESULTS=${RESULTS:-$RUN_DIR/results-tiny.md}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
THREADS=1
if [ "${COMPARE_SMOKE:-0}" = 1 ]; then
  BASE_TOKENS=15360 RL_MID_TOKENS=15360 MID_TOKENS=9216 SFT_STEPS=2 GRPO_STEPS=2 EVAL_LIMIT=8 HELDOUT=32 POINTS=2
fi
# shellcheck source=examples/lib/tiny.sh
. examples/lib/tiny.sh

ARMS=${ARMS:-ntp remit remit_nonrl remit_permuted ntp_equal_compute remit_sft remit_early remit_no_clip rho1 miniplm kd}

# How an arm differs from NTP on MID_TOKENS tokens.
flags_of() {
  case $1 in
    ntp | ntp_equal_compute | miniplm) ;;
    remit) remit_from rl_reference ;;
    remit_nonrl) remit_from mid ;;
    remit_permuted) remit_from rl_reference && echo --remit-control permute ;;
    remit_sft) remit_from sft ;;
    remit_early) remit_from rl_early ;;
    remit_no_clip) remit_from rl_reference && echo --remit-epsilon none ;;
    rho1) echo --objective rho1 --rho1-keep-ratio 0.8 --reference-load "$MEGATRON/rl_reference" ;;
    kd) echo --objective kd --reference-load "$MEGATRON/rl_reference" ;;
    *) echo "error: ARMS has '$1'; known are: $ARMS" >&2; return 2 ;;
  esac
}
remit_from() { echo --objective remit --reference-load "$MEGATRON/$1"; }

# A ReMiT step costs 8/6 of an NTP step: NTP on as many more tokens has cost the same.
tokens_of() { if [ "$1" = ntp_equal_compute ]; then echo $((MID_TOKENS * 4 / 3)); else echo "$MID_TOKENS"; fi; }

corpus_of() { if [ "$1" = miniplm ]; then echo selected; else echo mid; fi; }

# MiniPLM: the documents that the RL model prefers most over the base, by a score store of each.
select_documents() {
  local steps=$((RL_MID_TOKENS * 11 / 10 / (SEQ * BATCH))) data name  # more than one epoch of the corpus
  data=(
    --load "$MEGATRON/base" --use-checkpoint-args
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$MEGATRON/init/hf"
    --data-path "$DATA/mid" --split "100,0,0" --seq-length "$SEQ" --row-seed 1
    --micro-batch-size "$BATCH" --global-batch-size "$BATCH" --train-iters "$steps" --eval-iters 0
  )
  for name in base rl_reference; do
    quiet "score_$name" "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 tools/score_corpus.py \
      "${data[@]}" --reference-load "$MEGATRON/$name" --score-store "$RUN_DIR/scores/$name"
  done
  rm -f "$DATA"/selected.{bin,idx,json}
  quiet select "$PYTHON" tools/select_samples.py "${data[@]}" --store-large "$RUN_DIR/scores/rl_reference" \
    --store-small "$RUN_DIR/scores/base" --keep-ratio 0.8 --out "$DATA/selected"
}

other_references() {
  to_megatron sft
  reinforce rl_early $(((GRPO_STEPS + 9) / 10))
}

# run_arm ARM SEED: train, then export and evaluate each saved point.
run_arm() {
  local run=$1.$2 flags tokens points=$POINTS
  flags=$(flags_of "$1")
  tokens=$(tokens_of "$1")
  # shellcheck disable=SC2086 # words, not one argument
  RUN_SEED=$2 SAVES=$points pretrain "$run" base "$(corpus_of "$1")" "$tokens" 1e-3 1e-4 $flags
  "$PYTHON" examples/flywheel/evaluate_run.py --megatron "$MEGATRON/$run" --hf-template "$MEGATRON/init/hf" \
    --data "$DATA" --tensorboard "$RUN_DIR/tb/$run" --sequences-per-step $BATCH --sequence-length $SEQ \
    --limit "$EVAL_LIMIT" --out "$RUN_DIR/eval/$run.json"
  rm -rf "${MEGATRON:?}/$run"
}

arm_stage() {
  stage "$1.$2" "arm $1, seed $2: $(tokens_of "$1") tokens, $POINTS evaluations" "2 minutes" \
    run_arm "$1" "$2" > "$RUN_DIR/logs/$1.$2.out" 2>&1 || { tail -n 30 "$RUN_DIR/logs/$1.$2.out"; return 1; }
  echo "= arm $1, seed $2: done"
}

echo "All methods and controls in $RUN_DIR: about 40 minutes on two cores; interrupt and start again as you like."
for arm in $ARMS; do flags_of "$arm" > /dev/null; done
stage data "problems, filler text, tokenizer, .bin/.idx corpora" "half a minute" make_data
stage model "a random OLMo-2 model, imported from Hugging Face" "half a minute" make_model
stage base "pretraining the base, $BASE_TOKENS tokens" "3 minutes" train base init base "$BASE_TOKENS" 2e-3 1e-3
stage mid "NTP mid-training before RL, $RL_MID_TOKENS tokens" "2 minutes" train mid base mid "$RL_MID_TOKENS" 1e-3 1e-4
stage rl_reference "SFT, then GRPO with a verifiable reward (TRL)" "4 minutes" post_train
stage references "the SFT model and an early RL model as references" "1 minute" other_references
stage selected "MiniPLM: 80 % of the documents, by two score stores" "1 minute" select_documents
for name in base mid sft rl_early rl_reference; do
  stage "eval_$name" "held-out accuracy of $name (lm-eval)" "half a minute" \
    "$PYTHON" examples/flywheel/evaluate.py --model "$HF/$name" --data "$DATA" --arm "$name" \
    --out "$RUN_DIR/eval/$name.json" --limit "$EVAL_LIMIT"
done
stage token_kinds "what weights and choices do to each kind of token" "half a minute" \
  "$PYTHON" examples/flywheel/token_kinds.py --hf "$HF" --text "$DATA/mid.jsonl" --sequence-length $SEQ \
  --out "$RUN_DIR/token_kinds.json"
# Arm by arm: two seeds of an arm do not share the order of the data, whose index the first of them writes.
for arm in $ARMS; do
  for seed in $SEEDS; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    arm_stage "$arm" "$seed" &
  done
done
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n; done
"$PYTHON" examples/flywheel/compare_summary.py --run-dir "$RUN_DIR" --out "$RESULTS" --mid-tokens "$MID_TOKENS" \
  --problems "$EVAL_LIMIT" --jobs "$JOBS"
