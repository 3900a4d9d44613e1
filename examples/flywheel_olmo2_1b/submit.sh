#!/usr/bin/env bash
# The flywheel of OLMo-2-1B on a cluster: mid-training, SFT, DPO and two stages of RLVR, each a Slurm job that waits for
# the one before it. The RL model of a round is the reference of the next; each round starts from the same BASE_HF.
#
#   BASE_HF=... RL_HF=... CORPUS=... WORK=/shared/flywheel OPEN_INSTRUCT=... bash examples/flywheel_olmo2_1b/submit.sh
#
# With --dry-run it submits nothing and prints every command. Run again after a failure: what is there is not run again.
#
#   WORK         folder of all rounds, on a file system that all nodes share
#   ROUNDS       how often around (default: 2, the paper's ReMiT squared)
#   OBJECTIVE    remit (default), or ntp for the baseline through the same stages, which has one round
#   SBATCH_ARGS  more flags of sbatch for every job, such as "--partition=gpu --account=lab"
#
# The other variables are those of examples/remit_olmo1b.sh (docs/cluster.md), stage.sh and evaluate.sh.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
# shellcheck source=examples/lib/submit.sh
source "$project/examples/lib/submit.sh" "$@"
export OBJECTIVE=${OBJECTIVE:-remit}
ROUNDS=${ROUNDS:-2}
needed=(BASE_HF CORPUS WORK OPEN_INSTRUCT)
[[ $OBJECTIVE == ntp ]] || needed+=(RL_HF)
for name in "${needed[@]}"; do
  [[ -n ${!name:-} ]] || fail "$name is not set; the head of $0 says what it is"
done
[[ $ROUNDS =~ ^[1-9][0-9]*$ ]] || fail "ROUNDS is '$ROUNDS': expected a whole number above 0"
[[ $OBJECTIVE != ntp || $ROUNDS == 1 ]] || fail "OBJECTIVE=ntp reads no reference, so it has no next round: set ROUNDS=1"
for folder in "$BASE_HF" ${RL_HF:+"$RL_HF"}; do
  [[ -e $folder/config.json ]] || fail "$folder: no config.json in it; docs/tutorial-olmo2-1b.md has the downloads"
done
WORK=$(realpath -m "$WORK")
cd "$project"

job= # of the last stage that was submitted: the next one waits for it

# stage LABEL SCRIPT OUT VARIABLE=VALUE ...: a stage of the chain, unless its OUT is there.
stage() {
  local label=$1 script=$2 out=$3
  shift 3
  if [[ -e $out/config.json ]]; then
    echo "$label: $out is there"
    return
  fi
  submit "$label" "$script" "$job" "$@"
  job=$submitted
  # What the job will run. Mid-training's command and plan need its reference, which a later round has yet to make.
  [[ -z $dry_run || $script == examples/remit_olmo1b.sh ]] || env "$@" bash "$script" --dry-run | sed 's/^/    /'
}

# judge LABEL SUITE NAME=DIR: the paper's evaluation of a stage's model; nothing waits for it.
judge() {
  local variables=("MODELS=$3" "OUT=$WORK/results" "SUITE=$2")
  submit "$1" examples/evaluate.sh "$job" "${variables[@]}"
  [[ -z $dry_run ]] || env "${variables[@]}" bash examples/evaluate.sh --dry-run | sed 's/^/    /'
}

reference=${RL_HF:-}
for round in $(seq "$ROUNDS"); do
  folder=$WORK/$OBJECTIVE-$round name=$OBJECTIVE-$round
  stage "$name-midtrain" examples/remit_olmo1b.sh "$folder/midtrain/hf" \
    "BASE_HF=$BASE_HF" "RL_HF=$reference" "CORPUS=$CORPUS" "RUN_DIR=$folder/midtrain" "IMPORT_DIR=$WORK/imported"
  judge "$name-judge-midtrain" base "$name=$folder/midtrain/hf"
  stage "$name-sft" "examples/flywheel_olmo2_1b/sft.sh" "$folder/sft" "IN=$folder/midtrain/hf" "OUT=$folder/sft"
  stage "$name-dpo" "examples/flywheel_olmo2_1b/dpo.sh" "$folder/dpo" "IN=$folder/sft" "OUT=$folder/dpo"
  stage "$name-rlvr1" "examples/flywheel_olmo2_1b/rlvr.sh" "$folder/rlvr1" \
    "IN=$folder/dpo" "OUT=$folder/rlvr1" RLVR_STAGE=1
  stage "$name-rlvr2" "examples/flywheel_olmo2_1b/rlvr.sh" "$folder/rlvr2" \
    "IN=$folder/rlvr1" "OUT=$folder/rlvr2" RLVR_STAGE=2
  judge "$name-judge-rl" zero-shot "$name-rl=$folder/rlvr2"
  reference=$folder/rlvr2
done
