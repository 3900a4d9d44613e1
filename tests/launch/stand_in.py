"""Commands that stand in for Slurm's, for tests of a job without a cluster."""

import os
import re
import subprocess
import sys
import time

from tests.ranks import ROOT

STEPS = 9
# srun notes its command, and does what the command would leave behind. Training saves step REACHED and ends with
# TRAIN_STATUS; with HANG it first waits for USR1, like a run that is preempted. With FAILS=n it first fails n times,
# for the CAUSE that a rank wrote, after step STEPPED. With STUCK=n it makes n steps and no more.
SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >> "$NOTES/commands"
words=" $*"
after() { local rest=${words#* "$1" }; echo "${rest%% *}"; }
case "$*" in
  *plan_run.py*) exit "${PLAN_STATUS:-0}" ;;
  *import_hf.py*) mkdir -p "$(after --out)/hf"; exit "${IMPORT_STATUS:-0}" ;;
  *launch.stage*) exit "${STAGE_STATUS:-0}" ;;
  *export_hf.py*) mkdir -p "$(after --out)"; exit "${EXPORT_STATUS:-0}" ;;
esac
if [[ -n ${HANG:-} ]]; then
  asked=
  trap 'asked=1' USR1
  touch "$NOTES/training"
  while [[ -z $asked ]]; do sleep 0.02; done
fi
beat() { echo "{\"step\": $1, \"doing\": \"training\", \"time\": $RANDOM}" > "$(after --heartbeat)"; }
if [[ -n ${FAILS:-} && ! -e $NOTES/failed_$FAILS ]]; then
  for i in 1 2 3 4; do [[ -e $NOTES/failed_$i ]] || break; done
  touch "$NOTES/failed_$i"
  [[ -z ${STEPPED:-} ]] || { beat "$STEPPED"; sleep 0.6; }
  logs=$(after megatron_remit.launch.node)
  mkdir -p "$logs"
  [[ -z ${CAUSE:-} ]] || echo "$CAUSE" > "$logs/failed-node-0.json"
  exit 1
fi
if [[ -n ${STUCK:-} ]]; then
  trap 'echo "stacks"; exit 1' USR2
  beat "$STUCK"
  while true; do sleep 0.02; done
fi
if [[ $words == *score_corpus.py* ]]; then
  mkdir -p "$(after --score-store)"
  touch "$(after --score-store)/scores-$RANDOM.safetensors"
  logs=$(after megatron_remit.launch.node)
  [[ -z ${ASKED:-} ]] || { mkdir -p "$logs"; touch "$logs/asked-node-1"; }
  exit "${TRAIN_STATUS:-0}"
fi
echo "${REACHED:-9}" > "$(after --save)/latest_checkpointed_iteration.txt"
exit "${TRAIN_STATUS:-0}"
"""
# With DEAF, Slurm hears a command only when it is given again: the first one ends by SIGPIPE, or says DEAF and fails.
HEARD = """#!/bin/sh
name=${0##*/}
echo "$name $*" >> "$NOTES/commands"
if [ -n "$DEAF" ] && [ ! -e "$NOTES/tried_$name" ]; then
  touch "$NOTES/tried_$name"
  [ "$DEAF" != SIGPIPE ] || kill -PIPE $$
  echo "$name: error: $DEAF" >&2
  exit 1
fi
"""
SQUEUE = HEARD + 'echo "${STATE:-RUNNING}"\n'
SCONTROL = (
    HEARD
    + """
if [ "$1 $2" = "show hostnames" ]; then printf 'first\\nsecond\\n'
elif [ "$1" = show ]; then echo "JobId=77 ExcNodeList=${EXCLUDED:-(null)} Features=x"
else exit "${REQUEUE_STATUS:-0}"; fi
"""
)


class StandIn:
    """Starts examples/remit_olmo1b.sh as Slurm would start it, as job 77 on two nodes."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("base", "rl", "bin", "notes"):
            (folder / name).mkdir()
        (folder / "base/config.json").write_text("{}")
        for name, text in (("srun", SRUN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, **variables):
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
        given = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "NOTES": self.folder / "notes",
            "BASE_HF": self.folder / "base",
            "RL_HF": self.folder / "rl",
            "CORPUS": self.folder / "corpus",
            "RUN_DIR": self.folder / "run",
            "PYTHON": sys.executable,
            "TRAIN_ITERS": STEPS,
            "SLURM_JOB_ID": 77,
            "SLURM_NNODES": 2,
            "SLURM_GPUS_ON_NODE": 1,
            "SLURM_JOB_NODELIST": "first,second",
        } | variables
        return subprocess.Popen(
            ["bash", str(ROOT / "examples/remit_olmo1b.sh")],
            env=kept | {name: str(value) for name, value in given.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **variables):
        """The exit status, and the output without times."""
        return end(self.start(**variables))

    def commands(self):
        """Slurm's commands so far; srun's as the number of nodes and the program."""
        lines = (self.folder / "notes/commands").read_text().splitlines()
        programs = r"plan_run|import_hf|export_hf|megatron_remit\.launch\.(?:node|stage)"
        return [
            f"{re.search(r'--nodes=(\d+)', line)[1]} {re.search(programs, line)[0]}"
            if line.startswith("srun")
            else line
            for line in lines
        ]


def end(job):
    output, _ = job.communicate(timeout=60)
    return job.returncode, re.sub(r"\d\d:\d\d:\d\d", "TIME", output)


def wait_for(condition, job):
    limit = time.monotonic() + 60
    while not condition():
        assert job.poll() is None and time.monotonic() < limit, job.communicate()[0]
        time.sleep(0.02)
