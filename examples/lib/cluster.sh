# shellcheck shell=bash
# Hands a job script (examples/remit_*.sh) over to megatron_remit.launch.job: source cluster.sh RECIPE [ARGUMENT ...].
PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=examples/lib/help.sh
source "$PROJECT/examples/lib/help.sh" "${@:2}"

# The job itself needs Python's standard library only. The virtual environment's Python is used if the nodes run it;
# with a container the host may have no other than its own.
python=
[[ -n ${CONTAINER_IMAGE:-} ]] || python=$(command -v "${PYTHON:-${VENV:-$PROJECT/.venv}/bin/python}" || true)
[[ -n $python ]] || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' || {
  echo "error: the host needs python3, version 3.9 or later; put one on the PATH" >&2
  exit 2
}
# exec: Slurm's signals to the batch script are then signals to the job. The path is passed as an argument because
# PYTHONPATH would reach the commands on the nodes, and in a container the project is in another place.
exec "$python" -c 'import sys
sys.path.insert(0, sys.argv[1])
from megatron_remit.launch.job import main
main()' "$PROJECT" "$0" "$@"
