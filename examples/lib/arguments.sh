# shellcheck shell=bash
# What the scripts that submit or run jobs share: source arguments.sh "$@". Sets dry_run for --dry-run.
# shellcheck source=examples/lib/help.sh
source "$(dirname "${BASH_SOURCE[0]}")/help.sh" "$@"

fail() {
  echo "error: $*" >&2
  exit 2
}

dry_run=
case ${1:-} in
  "") ;;
  --dry-run) dry_run=1 ;;
  *) fail "unknown argument '$1'; settings are environment variables, the only argument is --dry-run" ;;
esac
