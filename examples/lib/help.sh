# shellcheck shell=bash
# --help of a script prints the comment at its head, without Slurm's lines: source help.sh "$@".
case ${1:-} in
  -h | --help)
    sed -n -e '/^#SBATCH/d' -e '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
