# shellcheck shell=bash
# SETUP of the job scripts (docs/cluster.md), for jobs in bash: source setup.sh, and put "${setup[@]}" before the command
# that each node runs. Without SETUP it is empty.
setup=()
if [[ -n ${SETUP:-} ]]; then
  setup_code=$SETUP
  [[ ! -f $SETUP ]] || setup_code=". $(printf '%q' "$(realpath "$SETUP")")"
  # exec: Slurm's signals are then signals to the command.
  setup=(bash -c "{ $setup_code"$'\n'"} || { echo 'error: SETUP failed' >&2; exit 2; }"$'\n''exec "$@"' setup)
fi
