#!/usr/bin/env bash
# Run a command next to a real Slurm of two virtual nodes on this machine, without systemd:
#
#   tests/slurm/with_cluster.sh COMMAND...
#
# munged, slurmctld and slurmd keep everything in a folder of their own under TMPDIR, listen on free ports, and are
# stopped at the end whatever happens. Root is needed only to install Debian's packages where they are missing.
# FIRST_JOB is the number of the first job (1): the ranks' port follows from it, so two clusters at once need it apart.
set -euo pipefail
# shellcheck source=examples/lib/help.sh
source "$(dirname "$0")/../../examples/lib/help.sh" "$@"
cd "$(dirname "$0")/../.."

missing=()
for pair in slurmctld:slurm-wlm munged:munge; do
  PATH=$PATH:/usr/sbin command -v "${pair%:*}" > /dev/null || missing+=("${pair#*:}")
done
if ((${#missing[@]})); then
  echo "> installing ${missing[*]}"
  as_root=()
  if ((EUID)); then as_root=(sudo -n); fi
  if ! command -v apt-get > /dev/null || { ((EUID)) && ! sudo -n true 2> /dev/null; }; then
    echo "error: ${missing[*]} not found, and installing needs apt-get and root (or sudo without a password)." >&2
    echo "Install Slurm (slurmctld, slurmd, sbatch) and munge, then run this again." >&2
    exit 2
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
export PATH=$PATH:/usr/sbin

home=$(mktemp -d "${TMPDIR:-/tmp}/remit-slurm.XXXXXX")
started=()

# ours: processes that have this cluster's SLURM_CONF in their environment: the daemons, and jobs that outlived them.
ours() {
  local file pid
  for file in /proc/[0-9]*/environ; do
    pid=${file//[!0-9]/}
    [[ $pid == "$$" || $pid == "$BASHPID" ]] ||
      { grep -qzxF "SLURM_CONF=$home/slurm.conf" "$file" 2> /dev/null && echo "$pid"; } || true
  done
}

stop() {
  local status=$?
  trap - EXIT INT TERM
  scancel --quiet --user "$(id -un)" 2> /dev/null || true
  # Jobs end first, while the daemons can see to it (KillWait).
  for _ in {1..20}; do [[ -n $(squeue --noheader 2> /dev/null) ]] || break; sleep 0.5; done
  kill "${started[@]}" 2> /dev/null || true
  for _ in {1..20}; do [[ -n $(jobs -pr) ]] || break; sleep 0.25; done
  # shellcheck disable=SC2046 # one word per process
  kill -KILL "${started[@]}" $(ours) 2> /dev/null || true
  if ((status)); then
    for log in "$home"/*.log; do echo "--- $(basename "$log")"; tail -n 15 "$log"; done >&2
  fi
  rm -rf "$home"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

# free_ports N: N ports that nothing listens on.
free_ports() {
  "${PYTHON:-python3}" -c 'import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))' "$1"
}
read -r controller_port port_1 port_2 <<< "$(free_ports 3)"

mkdir -p "$home"/{state,munge}
# munged insists on folders that only their owner can write.
chmod 755 "$home" "$home/munge"
head -c 1024 /dev/urandom > "$home/munge/key"
chmod 400 "$home/munge/key"
user=$(id -un)
cat > "$home/slurm.conf" << CONF
ClusterName=test
FirstJobId=${FIRST_JOB:-1}
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# cred_expire: how long a requeued job waits before it starts again, 120 seconds by default.
AuthInfo=socket=$home/munge/socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool-%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
# Seconds after which a silent node is lost, 300 by default.
SlurmdTimeout=30
# Seconds between SIGTERM and SIGKILL when a job is cancelled, 30 by default.
KillWait=5
# Seconds for which a finished job can be asked about, 300 by default.
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
GresTypes=gpu
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port_1 CPUs=2 Gres=gpu:8
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port_2 CPUs=2 Gres=gpu:8
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
# The scripts ask for 8 GPUs per node. Slurm only counts the devices, so /dev/null under eight names will do.
for i in {0..7}; do ln -s /dev/null "$home/gpu$i"; done
echo "Name=gpu File=$home/gpu[0-7]" > "$home/gres.conf"
export SLURM_CONF=$home/slurm.conf

munged --foreground --force --key-file="$home/munge/key" --socket="$home/munge/socket" --pid-file="$home/munge/pid" \
  --log-file="$home/munge/log" --seed-file="$home/munge/seed" 2> "$home/munged.log" &
started+=($!)
for _ in {1..50}; do [[ -S $home/munge/socket ]] && break; sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" > "$home/slurmctld.log" 2>&1 &
started=($! "${started[@]}")
for node in n1 n2; do
  slurmd -D -N "$node" -f "$SLURM_CONF" > "$home/slurmd-$node.log" 2>&1 &
  started=($! "${started[@]}")
done
for _ in {1..100}; do
  [[ $(sinfo --noheader --format %t%D 2> /dev/null) == idle2 ]] && break
  sleep 0.2
done
[[ $(sinfo --noheader --format %t%D) == idle2 ]] || { echo "error: the test's Slurm did not come up" >&2; exit 1; }
"$@"
