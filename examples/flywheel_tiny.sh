#!/usr/bin/env bash
# The whole ReMiT flywheel on a model of 0.9M parameters, on a CPU. Each stage is a command of the real path, or the
# function behind it:
#
#   corpora with errors -> base -> SFT -> RL = the reference -> Megatron
#   then, from the same base and on the same tokens, three times each: NTP | ReMiT | ReMiT with the model before RL
#   -> Hugging Face -> held-out problems -> report.html
#
# Usage: examples/flywheel_tiny.sh [flags of examples/flywheel/demo.py]      (make demo)
#   RUN_DIR=runs/demo     where everything goes; a finished stage is not run again
#   FLYWHEEL_SMOKE=1      sizes of a few steps, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/.."
smoke=()
if [ "${FLYWHEEL_SMOKE:-0}" = 1 ]; then smoke=(--smoke); fi
exec "${PYTHON:-.venv/bin/python}" examples/flywheel/demo.py --run-dir "${RUN_DIR:-runs/demo}" "${smoke[@]}" "$@"
