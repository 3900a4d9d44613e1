#!/usr/bin/env bash
# The whole ReMiT flywheel on a model of 0.9M parameters, on a CPU. Each stage is a command of the real path:
#
#   corpus -> base (NTP) -> NTP mid-training -> Hugging Face -> SFT -> GRPO = the RL reference -> Megatron
#   then, from the same base and on the same tokens: NTP | ReMiT | ReMiT with a reference that saw no RL
#   -> Hugging Face -> accuracy on held-out problems -> report.html
#
# Usage: examples/flywheel_tiny.sh            (make demo)
#   RUN_DIR=runs/demo     where everything goes; a finished stage is not run again
#   FLYWHEEL_SMOKE=1      sizes of a few steps, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/.."

RUN_DIR=${RUN_DIR:-runs/demo}
if [ "${FLYWHEEL_SMOKE:-0}" = 1 ]; then
  BASE_TOKENS=15360 RL_MID_TOKENS=15360 MID_TOKENS=15360 SFT_STEPS=2 GRPO_STEPS=1 EVAL_LIMIT=16 HELDOUT=32
fi
# shellcheck source=examples/lib/tiny.sh
. examples/lib/tiny.sh

evaluate() {
  "$PYTHON" examples/flywheel/evaluate.py --model "$HF/$1" --data "$DATA" --arm "$1" --out "$RUN_DIR/eval/$1.json" \
    --limit "$EVAL_LIMIT"
}

summarize() {
  "$PYTHON" examples/flywheel/show.py settings --run-dir "$RUN_DIR" --set seed="$SEED" sequence_length=$SEQ \
    sequences_per_step=$BATCH epsilon=0.2 base_tokens="$BASE_TOKENS" rl_mid_tokens="$RL_MID_TOKENS" \
    mid_tokens="$MID_TOKENS" sft_steps="$SFT_STEPS" grpo_steps="$GRPO_STEPS" threads="$THREADS"
  "$PYTHON" examples/flywheel/show.py report --run-dir "$RUN_DIR"
}

echo "The tiny flywheel in $RUN_DIR: about 15 minutes on two cores; interrupt it and start it again as you like."
stage data "problems, filler text, tokenizer, .bin/.idx corpora" "half a minute" make_data
stage model "a random OLMo-2 model, imported from Hugging Face" "half a minute" make_model
stage base "pretraining the base, $BASE_TOKENS tokens" "2 minutes" train base init base "$BASE_TOKENS" 2e-3 1e-3
stage mid "NTP mid-training before RL, $RL_MID_TOKENS tokens" "1 minute" train mid base mid "$RL_MID_TOKENS" 1e-3 1e-4
stage rl_reference "SFT, then GRPO with a verifiable reward (TRL)" "2 to 3 minutes" post_train
stage ntp "arm 1: NTP, $MID_TOKENS tokens" "1 minute" train ntp base mid "$MID_TOKENS" 1e-3 1e-4
stage remit "arm 2: ReMiT, the RL model as reference" "1 minute" train remit base mid "$MID_TOKENS" 1e-3 1e-4 \
  --objective remit --reference-load "$MEGATRON/rl_reference"
stage remit_nonrl "arm 3, the control: ReMiT, the model before RL as reference" "1 minute" \
  train remit_nonrl base mid "$MID_TOKENS" 1e-3 1e-4 --objective remit --reference-load "$MEGATRON/mid"
for arm in base mid rl_reference ntp remit remit_nonrl; do
  stage "eval_$arm" "held-out accuracy of $arm, greedy (lm-eval)" "half a minute" evaluate $arm
done
summarize
