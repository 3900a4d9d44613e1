# shellcheck shell=bash
# What the scripts that submit or run jobs share: source arguments.sh "$@". Sets dry_run for --dry-run.

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
