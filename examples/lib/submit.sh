# shellcheck shell=bash
# Submits jobs that may wait for one another, or prints the commands with --dry-run: source submit.sh "$@".
#
#   SBATCH_ARGS  more flags of sbatch for every job
# shellcheck source=examples/lib/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh" "$@"
[[ -n $dry_run ]] || command -v sbatch > /dev/null || fail "sbatch is not there; --dry-run does without"
read -ra sbatch_args <<< "${SBATCH_ARGS:-}"

# submit LABEL SCRIPT DEPENDENCIES VARIABLE=VALUE ...: sets `submitted` to the job's number. DEPENDENCIES are the numbers
# of the jobs that must have ended well, with colons between; it may be empty.
submit() {
  local label=$1 script=$2 after=$3
  shift 3
  local words=(env "$@" sbatch --parsable "--job-name=$label" "${sbatch_args[@]}")
  [[ -z $after ]] || words+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes)
  words+=("$script")
  if [[ -z $dry_run ]]; then
    submitted=$("${words[@]}")
    submitted=${submitted%%;*} # a cluster's name may follow
    echo "$label: job $submitted${after:+ after $after}"
    return
  fi
  submitted="<$label>"
  printf '%q ' "${words[@]}"
  echo
}
