#!/usr/bin/env bash
# Print a Python >= 3.12, which megatron-core 0.19 needs: from PATH, pyenv, or uv's own.
set -u
fits() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }
for name in python3.12 python3.13 python3.14 python3 python; do
  path=$(command -v "$name" 2>/dev/null) && fits "$path" && { echo "$path"; exit 0; }
done
for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python \
            "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/cpython-3.1[2-9]*/bin/python3; do
  [ -x "$path" ] && fits "$path" && { echo "$path"; exit 0; }
done
echo "error: no Python >= 3.12 with the venv module found (looked on PATH, in pyenv and in uv)." >&2
echo "Install one: 'pyenv install 3.12', 'uv python install 3.12', or your distribution's python3.12 and python3.12-venv." >&2
exit 1
