#!/usr/bin/env bash
# The tests against another megatron-core: tools/test_next.sh VERSION_OR_PATH [pytest's arguments...]
#
# It is installed alone, on top of the environment VENV, into an environment of its own (NEXT, default build/next), which
# is kept. Prints which of the names that this program uses are gone (tests/test_megatron_names.py), then which tests
# fail, by file and by their errors. The exit status is that of the tests.
set -euo pipefail
# shellcheck source=examples/lib/help.sh
source "$(dirname "$0")/../examples/lib/help.sh" "$@"
cd "$(dirname "$0")/.."
megatron=${1:?give a version of megatron-core (0.20.0), or the path of a checkout or a wheel}
shift
base=${VENV:-.venv} next=${NEXT:-build/next}

packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

[ -x "$next/bin/python" ] || "$base/bin/python" -m venv --without-pip "$next"
# What is installed in $next comes first, what is missing there is taken from $base.
"$base/bin/python" - "$(packages "$base/bin/python")" "$(packages "$next/bin/python")" << 'PYTHON'
import sys
from pathlib import Path
base, next_ = map(Path, sys.argv[1:])
lines = [str(base), *(line for pth in base.glob("*.pth") for line in pth.read_text().splitlines())]
(next_ / "base.pth").write_text("\n".join([*lines, str(Path.cwd())]) + "\n")
PYTHON

if [ -e "$megatron" ]; then wanted=$megatron; else wanted=megatron-core==$megatron; fi
echo "> installing $wanted into $next"
"$base/bin/python" -m pip --quiet --disable-pip-version-check --python "$next/bin/python" install --no-deps --upgrade "$wanted"
"$next/bin/python" -W ignore -c '
import importlib.metadata, megatron.core
print("> megatron-core", importlib.metadata.version("megatron-core"), "in", megatron.core.__path__[0])' 2> /dev/null

mkdir -p build
log=build/test_next.log status=0
"$next/bin/python" -m pytest -q -p no:cacheprovider -rfE --tb=line tests/test_megatron_names.py > "$log" 2>&1 || status=$?
echo "> names that are gone, or replaced and no longer called:"
grep -oE '^(FAILED|ERROR) .*' "$log" | sed 's/^[A-Z]* /  /' || { [ "$status" = 0 ] && echo "  none" || tail -n 20 "$log"; }

"$next/bin/python" -m pytest -n "${WORKERS:-2}" --dist loadfile -rfE --tb=line "$@" > "$log" 2>&1 || status=$?
echo "> tests that fail, by file:"
grep -oE '^(FAILED|ERROR) [^: ]+' "$log" | awk '{print "  " $2}' | sort | uniq -c | sort -rn || echo "  none"
echo "> their errors, by how often:"
grep -oE '^E  +.*|^(FAILED|ERROR) .* - .*' "$log" | sed -E 's/^(FAILED|ERROR) .* - //; s/^E +//' | cut -c1-160 | sort | uniq -c | sort -rn |
  head -n 30 || echo "  none"
grep -E "[0-9]+ (passed|failed|error)" "$log" | tail -n 1 || tail -n 5 "$log"
echo "> the whole output: $log"
exit "$status"
