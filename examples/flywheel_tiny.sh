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
PYTHON=${PYTHON:-.venv/bin/python}
SEED=${SEED:-1}
if [ "${FLYWHEEL_SMOKE:-0}" = 1 ]; then
  BASE_TOKENS=15360 RL_MID_TOKENS=15360 MID_TOKENS=15360 SFT_STEPS=2 GRPO_STEPS=1 EVAL_LIMIT=16 HELDOUT=32
fi
BASE_TOKENS=${BASE_TOKENS:-2000000}       # pretraining of the base
RL_MID_TOKENS=${RL_MID_TOKENS:-800000}    # NTP mid-training of the model that RL starts from
MID_TOKENS=${MID_TOKENS:-600000}          # mid-training of the arms that are compared
SFT_STEPS=${SFT_STEPS:-30}
GRPO_STEPS=${GRPO_STEPS:-60}
HELDOUT=${HELDOUT:-1000}                  # held-out problems of each kind
EVAL_LIMIT=${EVAL_LIMIT:-$HELDOUT}
SEQ=128 BATCH=12
THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN)}

export OMP_NUM_THREADS=$THREADS TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1
mkdir -p "$RUN_DIR"/{done,logs,eval}
DATA=$RUN_DIR/data MEGATRON=$RUN_DIR/megatron HF=$RUN_DIR/hf

# stage NAME "what it does" "how long it may take" command...: run it once, keep its seconds.
stage() {
  local name=$1 what=$2 long=$3 start=$SECONDS
  shift 3
  if [ -e "$RUN_DIR/done/$name" ]; then echo "= $name: done before"; return; fi
  echo "> $name: $what ($long)"
  "$@"
  echo $((SECONDS - start)) > "$RUN_DIR/done/$name.tmp" && mv "$RUN_DIR/done/$name.tmp" "$RUN_DIR/done/$name"
}

quiet() { local log=$1; shift; "$@" > "$RUN_DIR/logs/$log.log" 2>&1 || { tail -n 30 "$RUN_DIR/logs/$log.log"; exit 1; }; }

make_data() {
  "$PYTHON" examples/flywheel/make_data.py --out "$DATA" --seed "$SEED" --heldout "$HELDOUT" \
    --base-tokens "$BASE_TOKENS" --mid-tokens "$RL_MID_TOKENS" --sft $((SFT_STEPS * 32)) --grpo 4000
  for part in base mid; do
    "$PYTHON" tools/preprocess_corpus.py --input "$DATA/$part.jsonl" --output-prefix "$DATA/$part" --workers 2 \
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$DATA/tokenizer"
  done
}

make_model() {
  rm -rf "$HF/init" "$MEGATRON/init"
  "$PYTHON" examples/flywheel/make_model.py --tokenizer "$DATA/tokenizer" --out "$HF/init" --seed "$SEED"
  to_megatron init
}

to_megatron() { quiet "import_$1" "$PYTHON" tools/import_hf.py --hf "$HF/$1" --out "$MEGATRON/$1" --overwrite; }
to_hf() {
  quiet "export_$1" "$PYTHON" tools/export_hf.py --megatron "$MEGATRON/$1" --hf-template "$MEGATRON/init/hf" \
    --out "$HF/$1" --overwrite
}

# train NAME FROM CORPUS TOKENS LR MIN_LR [flags...]: the training program, then the export to Hugging Face.
train() {
  local name=$1 from=$2 corpus=$3 tokens=$4 lr=$5 min_lr=$6
  shift 6
  local steps=$((tokens / (SEQ * BATCH)))
  rm -rf "${MEGATRON:?}/$name" "$RUN_DIR/tb/$name"
  "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 -m megatron_remit.pretrain \
    --load "$MEGATRON/$from" --use-checkpoint-args --finetune --exit-on-missing-checkpoint \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$MEGATRON/init/hf" \
    --data-path "$DATA/$corpus" --split 100,0,0 --eval-iters 0 --eval-interval 1000000 --seq-length $SEQ --seed "$SEED" \
    --micro-batch-size $BATCH --global-batch-size $BATCH --train-iters $steps \
    --lr "$lr" --min-lr "$min_lr" --lr-decay-style cosine --lr-warmup-fraction 0.02 \
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 \
    --save "$MEGATRON/$name" --save-interval $steps --no-save-optim \
    --tensorboard-dir "$RUN_DIR/tb/$name" --tensorboard-log-interval 1 --log-interval 10 "$@" 2>&1 |
    "$PYTHON" examples/flywheel/progress.py "$RUN_DIR/logs/train_$name.log" ||
    { tail -n 30 "$RUN_DIR/logs/train_$name.log"; exit 1; }
  to_hf "$name"
}

post_train() {
  rm -rf "$HF/sft" "$HF/rl_reference"
  "$PYTHON" examples/flywheel/sft.py --model "$HF/mid" --data "$DATA/sft.jsonl" --out "$HF/sft" --steps "$SFT_STEPS"
  "$PYTHON" examples/flywheel/grpo.py --model "$HF/sft" --data "$DATA/grpo.jsonl" --out "$HF/rl_reference" \
    --steps "$GRPO_STEPS"
  to_megatron rl_reference
}

evaluate() {
  "$PYTHON" examples/flywheel/evaluate.py --model "$HF/$1" --data "$DATA" --arm "$1" --out "$RUN_DIR/eval/$1.json" \
    --limit "$EVAL_LIMIT"
}

summarize() {
  "$PYTHON" examples/flywheel/summary.py --run-dir "$RUN_DIR" --set seed="$SEED" sequence_length=$SEQ \
    sequences_per_step=$BATCH epsilon=0.2 base_tokens="$BASE_TOKENS" rl_mid_tokens="$RL_MID_TOKENS" \
    mid_tokens="$MID_TOKENS" sft_steps="$SFT_STEPS" grpo_steps="$GRPO_STEPS" threads="$THREADS"
  "$PYTHON" tools/report.py --run-dir "$RUN_DIR"
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
