# Slurm's side of the cluster scripts: where commands run, and what happens on preemption. Sourced by cluster.sh.
# shellcheck shell=bash

interrupted=0   # 1 once Slurm has announced preemption or the time limit to this script
child=          # process that the script waits for
signalled=0     # set by on_signal, to tell a wait that a signal cut short from one that has ended

# container=(...), step_flags=(...), PYTHON, TOOLS, MASTER_ADDR, MASTER_PORT.
environment() {
  # One task a node starts a process for each GPU, which need the node's cores between them: no binding of the task.
  step_flags=(--ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1)
  if [[ -n ${CONTAINER_IMAGE:-} ]]; then
    local inside=${CONTAINER_PROJECT:-/opt/megatron-remit}
    PYTHON=${PYTHON:-python} TOOLS=$inside/tools
    step_flags+=(
      "--container-image=$CONTAINER_IMAGE" "--container-mounts=$(mounts)"
      "--container-workdir=$inside" --no-container-mount-home
    )
  else
    # shellcheck disable=SC2034 # TOOLS is for the other files
    PYTHON=${PYTHON:-${VENV:-$PROJECT/.venv}/bin/python} TOOLS=$PROJECT/tools
    [[ -x $(command -v "$PYTHON") ]] ||
      die "$PYTHON is not there: set VENV to a virtual environment on a shared file system, or CONTAINER_IMAGE"
  fi
  if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}
  fi
  # Jobs that share a node do not meet on a port.
  MASTER_ADDR=${MASTER_ADDR:-FIRST_NODE} MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
}

# Every folder that the run reads or writes, at the same path inside the container, then the user's CONTAINER_MOUNTS.
mounts() {
  local prefix folders=("$BASE_HF" "${RL_HF:-$BASE_HF}" "$RUN_DIR" "$IMPORT_DIR")
  for prefix in "${PREFIXES[@]}"; do folders+=("$(dirname "$prefix")"); done
  {
    printf '%s\n' "${folders[@]}" | sort -u | sed 's/.*/&:&/'
    [[ -z ${CONTAINER_MOUNTS:-} ]] || echo "$CONTAINER_MOUNTS"
  } | paste -sd , -
}

# step NODES command...: one task on each of NODES nodes. Run by wait_for_child, in a shell of its own, which becomes
# srun: so a signal to the child is one to srun.
step() {
  local nodes=$1
  shift
  exec srun "${step_flags[@]}" --nodes="$nodes" --ntasks="$nodes" "$@"
}

# Slurm sends USR1 before the time limit (#SBATCH --signal=B:USR1@...) and may send TERM on preemption. srun passes
# USR1 on to its tasks: the launcher has the workers save, anything else ends.
on_signal() {
  say "signal from Slurm: saving and stopping"
  interrupted=1 signalled=1
  if [[ -n $child ]]; then kill -USR1 "$child" 2> /dev/null || true; fi
}

# wait_for_child command...: its exit status. bash runs a trap only between commands, so the command runs in the
# background and is waited for; a wait that a signal cut short is taken up again.
wait_for_child() {
  local status
  "$@" &
  child=$!
  while :; do
    signalled=0 status=0
    wait "$child" || status=$?
    ((signalled)) || break
  done
  child=
  return "$status"
}

# stop_or_die STATUS "what went wrong": after a command that Slurm may have had ended.
stop_or_die() {
  if ((interrupted)); then requeue; fi
  die "$2 (status $1)"
}

# Put this job back into the queue; it continues from its last checkpoint.
requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0} state
  # A job that the user cancelled, or that Slurm itself has requeued or timed out, is ending already.
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [[ $state != RUNNING ]]; then
    say "ended by Slurm ($state) at step $(saved_iteration) of $TRAIN_ITERS"
    exit 1
  fi
  ((restarts < MAX_RESTARTS)) ||
    die "restarted $restarts times (MAX_RESTARTS): not requeued; submit the same command again to continue"
  say "requeued at step $(saved_iteration) of $TRAIN_ITERS"
  scontrol requeue "$SLURM_JOB_ID" || die "Slurm does not requeue this job; submit the same command again to continue"
  exit 0
}

# Two jobs that write the same checkpoints would destroy them. The lock ends with the process that holds it.
one_job_only() {
  exec {run_lock}> "$RUN_DIR/job.lock"
  flock -n "$run_lock" || die "RUN_DIR=$RUN_DIR: another job is running there; give each job its own"
}
