#!/usr/bin/env bash
# Checks and times the kernels on one GPU, in under 9 minutes.
#
#     bash benchmarks/run_gpu.sh [OUT]        results go to OUT (default: benchmarks/results)
#
# Needs torch with Triton and the megatron-core wheel, nothing else: the package need not be installed. PYTHON=... names the
# interpreter; MEGATRON=DIR a folder with an unpacked megatron-core, if it is not installed either. Peers that are
# installed are timed too. Correctness comes first: if a check fails, nothing is timed and the exit status is 1.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
# shellcheck source=examples/lib/help.sh
source "$root/examples/lib/help.sh" "$@"
out="$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd)"
python="${PYTHON:-python3}"
cd "$root"

export PYTHONPATH="$root${MEGATRON:+:$MEGATRON}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONDONTWRITEBYTECODE=1

device="${DEVICE:-cuda}"
name="$("$python" -c "import torch; print((torch.cuda.get_device_name() if '$device' == 'cuda' else 'cpu').replace(' ', '_'))")"

timeout 150 "$python" benchmarks/check_logprob.py --device "$device"
timeout 60 "$python" benchmarks/check_norm.py --device "$device"
timeout 60 "$python" benchmarks/compile_kernels.py --csv "$out/kernels_sm90_$name.csv"
timeout 260 "$python" benchmarks/logprob.py --device "$device" --csv "$out/logprob_$name.csv" ${ARGUMENTS:-}
