#!/usr/bin/env bash
# All methods and controls on a tiny world with errors, on a CPU: docs/results-tiny.md.
#
#   for each base: corpora -> a base past its jump -> SFT -> RL = the reference
#   for each base, order of the data and arm: mid-training on the same tokens -> figures of held-out problems
#
# Usage: examples/compare_tiny.sh [flags of examples/flywheel/compare_methods.py]
#   --study methods lasting ...   what to ask (default: methods); --list prints what would be done, and the end of
#                                 docs/results-tiny.md says how long each stage takes
#   RUN_DIR=runs/compare          where everything goes; a finished stage is not run again
#   COMPARE_SMOKE=1               sizes of a few steps, to try the script itself
# Then: python examples/flywheel/results_page.py --gather RUN_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
smoke=()
if [ "${COMPARE_SMOKE:-0}" = 1 ]; then smoke=(--smoke); fi
exec "${PYTHON:-.venv/bin/python}" examples/flywheel/compare_methods.py --run-dir "${RUN_DIR:-runs/compare}" "${smoke[@]}" "$@"
