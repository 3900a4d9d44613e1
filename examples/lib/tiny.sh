# shellcheck shell=bash
# The stages that flywheel_tiny.sh and compare_tiny.sh share; sourced from the project's root with RUN_DIR set.
# Sizes come from the environment; a caller may set others before it sources this file.

PYTHON=${PYTHON:-.venv/bin/python}
SEED=${SEED:-1}
BASE_TOKENS=${BASE_TOKENS:-2000000}       # pretraining of the base
RL_MID_TOKENS=${RL_MID_TOKENS:-1200000}   # NTP mid-training of the model that RL starts from: a reference must be ahead
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
    "$PYTHON" tools/preprocess_corpus.py --input "$DATA/$part.jsonl" --output-prefix "$DATA/$part" --overwrite --workers 2 \
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$DATA/tokenizer"
  done
}

make_model() {
  rm -rf "$HF/init" "$MEGATRON/init"
  "$PYTHON" examples/flywheel/hf_models.py init --tokenizer "$DATA/tokenizer" --out "$HF/init" --seed "$SEED"
  to_megatron init
}

to_megatron() { quiet "import_$1" "$PYTHON" tools/import_hf.py --hf "$HF/$1" --out "$MEGATRON/$1" --overwrite; }
to_hf() {
  quiet "export_$1" "$PYTHON" tools/export_hf.py --megatron "$MEGATRON/$1" --hf-template "$MEGATRON/init/hf" \
    --out "$HF/$1" --overwrite
}

# pretrain NAME FROM CORPUS TOKENS LR MIN_LR [flags...]: the training program. RUN_SEED orders the data, SAVES is the
# number of checkpoints.
pretrain() {
  local name=$1 from=$2 corpus=$3 tokens=$4 lr=$5 min_lr=$6
  shift 6
  local steps=$((tokens / (SEQ * BATCH))) saves=${SAVES:-1}
  rm -rf "${MEGATRON:?}/$name" "$RUN_DIR/tb/$name"
  "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 -m megatron_remit.pretrain \
    --load "$MEGATRON/$from" --use-checkpoint-args --finetune --exit-on-missing-checkpoint \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$MEGATRON/init/hf" \
    --data-path "$DATA/$corpus" --split 100,0,0 --eval-iters 0 --eval-interval 1000000 --seq-length $SEQ --seed "${RUN_SEED:-$SEED}" \
    --micro-batch-size $BATCH --global-batch-size $BATCH --train-iters $steps \
    --lr "$lr" --min-lr "$min_lr" --lr-decay-style cosine --lr-warmup-fraction 0.02 \
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 \
    --save "$MEGATRON/$name" --save-interval $(((steps + saves - 1) / saves)) --no-save-optim \
    --tensorboard-dir "$RUN_DIR/tb/$name" --tensorboard-log-interval 1 --log-interval 10 "$@" 2>&1 |
    "$PYTHON" examples/flywheel/show.py progress "$RUN_DIR/logs/train_$name.log" ||
    { tail -n 30 "$RUN_DIR/logs/train_$name.log"; exit 1; }
}

# train: the same, then the export to Hugging Face.
train() { pretrain "$@" && to_hf "$1"; }

post_train() {
  rm -rf "$HF/sft"
  "$PYTHON" examples/flywheel/hf_models.py sft --model "$HF/mid" --data "$DATA/sft.jsonl" --out "$HF/sft" \
    --steps "$SFT_STEPS"
  reinforce rl_reference "$GRPO_STEPS"
}

# reinforce NAME STEPS: GRPO from the SFT model, then the import.
reinforce() {
  rm -rf "${HF:?}/$1"
  "$PYTHON" examples/flywheel/hf_models.py grpo --model "$HF/sft" --data "$DATA/grpo.jsonl" --out "$HF/$1" --steps "$2"
  to_megatron "$1"
}
