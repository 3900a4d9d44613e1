#!/usr/bin/env bash
# Several runs from one command: each arm with each seed is a Slurm job, and one more evaluates them all when they ended.
#
#   BASE_HF=... RL_HF=... CORPUS=... WORK=/shared/sweep SEEDS="1 2 3" bash examples/sweep.sh
#
# With --dry-run it submits nothing and prints every command. Run again after a failure, or with more TOKENS: what is
# finished is not run again.
#
#   WORK         folder of all runs, on a file system that all nodes share; a run is WORK/ARM-SEED
#   ARMS         what to compare (default: "ntp remit"): names of --objective, and the controls
#                  permute     ReMiT whose weights stand on other tokens of their sequence
#                  before-rl   ReMiT with the model before RL as the reference (CONTROL_HF)
#   SEEDS        Megatron's seeds (default: "1234")
#   CONTROL_HF   Hugging Face folder of the model before RL, for before-rl
#   SCORE_FIRST  1: a job scores the corpus once with RL_HF, and the arms that read its scores wait for it; rows are
#                then the same for all seeds (--row-seed 1)
#   SCRIPT       job script of the model (default: examples/remit_olmo1b.sh)
#   SUITE        suite of the evaluation (default: base); none: no evaluation
#   SBATCH_ARGS  more flags of sbatch for every job, such as "--partition=gpu --account=lab"
#
# The other variables are those of the job scripts (docs/cluster.md) and of evaluate.sh, the same for every run.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=examples/lib/submit.sh
source "$project/examples/lib/submit.sh" "$@"
read -ra arms <<< "${ARMS:-ntp remit}"
read -ra seeds <<< "${SEEDS:-1234}"
script=${SCRIPT:-examples/remit_olmo1b.sh}
for name in BASE_HF CORPUS WORK; do
  [[ -n ${!name:-} ]] || fail "$name is not set; the head of $0 says what it is"
done
for arm in "${arms[@]}"; do
  [[ $arm =~ ^[A-Za-z0-9_.:-]+$ ]] || fail "ARMS: '$arm' is not the name of an arm"
  [[ $arm != before-rl || -n ${CONTROL_HF:-} ]] || fail "ARMS has before-rl: set CONTROL_HF to the model before RL"
  [[ $arm =~ ^(ntp|eslm|before-rl)$ || -n ${RL_HF:-} ]] || fail "RL_HF is not set, which the arm $arm reads"
done
for seed in "${seeds[@]}"; do
  [[ $seed =~ ^[0-9]+$ ]] || fail "SEEDS: '$seed' is not a whole number"
done
WORK=$(realpath -m "$WORK")
cd "$project"
[[ -e $script ]] || fail "SCRIPT=$script: no such file"

score_first=${SCORE_FIRST:-0} reads_scores='^(remit|permute|rho1|prift)$' scored=''
[[ $score_first =~ ^[01]$ ]] || fail "SCORE_FIRST is '$score_first': expected 0 or 1"
if [[ $score_first == 1 ]]; then
  [[ -n ${RL_HF:-} ]] || fail "SCORE_FIRST=1: RL_HF is not set"
  EXTRA_ARGS="${EXTRA_ARGS:-} --row-seed 1"
  EXTRA_ARGS=${EXTRA_ARGS# }
  submit score "$script" "" TASK=score OBJECTIVE=remit "SCORES=$WORK/scores" "RUN_DIR=$WORK/scoring" \
    "IMPORT_DIR=$WORK/imported" "EXTRA_ARGS=$EXTRA_ARGS"
  scored=$submitted
fi

after='' models=()
for arm in "${arms[@]}"; do
  for seed in "${seeds[@]}"; do
    run=$WORK/$arm-$seed
    models+=("$arm-$seed=$run/hf")
    objective=$arm reference=${RL_HF:-} extra=${EXTRA_ARGS:-}
    case $arm in
      permute) objective=remit extra="$extra --remit-control permute" ;;
      before-rl) objective=remit reference=$CONTROL_HF ;;
    esac
    scores='' first=''
    if [[ -n $scored && $arm =~ $reads_scores ]]; then scores=$WORK/scores first=$scored; fi
    variables=("SCORES=$scores" "OBJECTIVE=$objective" "RL_HF=$reference" "SEED=$seed" "RUN_DIR=$run"
      "IMPORT_DIR=$WORK/imported" "EXTRA_ARGS=${extra# }")
    if [[ -e $run/hf/config.json ]]; then
      status=0
      env "${variables[@]}" bash "$script" --finished || status=$?
      ((status <= 1)) || exit "$status"
      if [[ $status == 0 ]]; then
        echo "$arm-$seed: $run/hf is there"
        continue
      fi
    fi
    submit "$arm-$seed" "$script" "$first" "${variables[@]}"
    after=${after:+$after:}$submitted
  done
done
[[ ${SUITE:-base} != none ]] || exit 0
submit judge examples/evaluate.sh "$after" "MODELS=${models[*]}" "OUT=$WORK/results" "SUITE=${SUITE:-base}" EXTRA_ARGS=
