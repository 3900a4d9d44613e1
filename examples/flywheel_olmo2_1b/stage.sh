# shellcheck shell=bash
# What the stages after mid-training share: source stage.sh [--dry-run], set `command`, call run_stage.
#
#   IN               model folder that the stage starts from
#   OUT              model folder that it writes; it appears whole, and a stage whose OUT is there does nothing
#   OPEN_INSTRUCT    checkout of github.com/allenai/open-instruct at commit 65fc1b99, which its docs/olmo2.md names
#   OPEN_INSTRUCT_BIN  bin folder of its environment (default: OPEN_INSTRUCT/.venv/bin)
#   SETUP            shell code, or a file of it, that each node runs before the command, such as "module load cuda"
#
# The numbers of the stages are those that Ai2 published for OLMo-2-1B (open-instruct, docs/olmo2.md). Its names of flags
# changed over time: those here are of the commit above. Nothing is pushed to the hub. None of it has run on a GPU yet.

# The caller has found this folder, and set `here` to it.
# shellcheck source=examples/lib/arguments.sh disable=SC2154
source "$here/../lib/arguments.sh" "$@"
# shellcheck source=examples/lib/setup.sh
source "$here/../lib/setup.sh"
for name in IN OUT OPEN_INSTRUCT; do
  [[ -n ${!name:-} ]] || fail "$name is not set; examples/flywheel_olmo2_1b/stage.sh says what it is"
done
IN=$(realpath -m "$IN") OUT=$(realpath -m "$OUT")
bin=${OPEN_INSTRUCT_BIN:-$OPEN_INSTRUCT/.venv/bin}
# A stage writes here. A job that was preempted goes on from the checkpoints in it.
part=$OUT.part

# accelerate's own flags, for ZeRO stage $1 on one node.
launch() {
  command=("${setup[@]}" "$bin/accelerate" launch --mixed_precision bf16 --num_processes "${SLURM_GPUS_ON_NODE:-8}" --use_deepspeed
    --deepspeed_config_file "configs/ds_configs/stage$1_no_offloading_accelerate.conf"
    --deepspeed_multinode_launcher standard)
}

# Slurm does not hear a command while its controller restarts, or where the node is so busy that munge hangs up.
requeue() {
  local pause
  echo "> the time is nearly over: back into the queue"
  for pause in 0 1 5 25; do
    sleep "$pause"
    scontrol requeue "$SLURM_JOB_ID" && return
  done
}

# Run `command` in the checkout, and go back into the queue when Slurm announces the end of the job's time.
work() {
  trap 'requeue &' USR1
  (cd "$OPEN_INSTRUCT" && exec "${command[@]}") &
  local child=$! status
  while true; do
    status=0
    wait "$child" || status=$?
    # The signal ends `wait`, not the command: Slurm does that.
    kill -0 "$child" 2> /dev/null || break
  done
  [[ $status -eq 0 ]] || fail "the command ended with status $status; the first error above says why"
}

# run_stage FINISHED: run `command` in the checkout; then FINISHED prints the folder that becomes OUT.
run_stage() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
  fi
  [[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a Slurm script: submit it with sbatch, or pass --dry-run"
  if [[ -e $OUT/config.json ]]; then
    echo "> $OUT is there"
    exit
  fi
  [[ -e $IN/config.json ]] || fail "IN=$IN: no model folder; did the stage before it end well?"
  [[ -d $OPEN_INSTRUCT/open_instruct ]] || fail "OPEN_INSTRUCT=$OPEN_INSTRUCT: not a checkout of open-instruct"
  mkdir -p "$part"
  work
  local finished
  finished=$("$1")
  [[ -n $finished && -e $finished/config.json ]] || fail "the stage ended, but there is no model in $part"
  mv "$finished" "$OUT"
  rm -rf "$part"
  echo "> done: $OUT"
}
