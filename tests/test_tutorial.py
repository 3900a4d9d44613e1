"""The commands of docs/tutorial-olmo2-1b.md and tutorial-olmo3-7b.md, run on tiny stand-ins for what they download.

`hf` copies what the test has made under the repository's name; sbatch, srun and their relatives run a job at once, on
this machine. All else is the real program.
"""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest
import zstandard

from tests.evaluation.formats import write_formats
from tests.hf_models import make_model, make_olmo2
from tests.ranks import ROOT

SOURCES = ("dclm", "flan", "pes2o", "wiki", "stackexchange", "math")
PROGRAMS = {
    # hf download REPOSITORY [--revision R] [--include "data/SOURCE/**"] --local-dir DIR
    "hf": """
repository=$2; shift 2; part=
while [[ $# -gt 0 ]]; do
  case $1 in
    --revision) repository=$repository@$2 ;;
    --include) part=/${2%/\\*\\*} ;;
    --local-dir) out=$2 ;;
  esac
  shift 2
done
mkdir -p "$out$part"
cp -r "$STAND_INS/$repository$part/." "$out$part"
""",
    # Flags of sbatch, then the script: a job on one node with one process, an array as one job.
    "sbatch": """
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=7 SLURM_NNODES=1 SLURM_GPUS_ON_NODE=1 SLURM_JOB_NODELIST=localhost
exec bash "$1"
""",
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "echo localhost\n",
    "squeue": "echo RUNNING\n",
}
# What makes the jobs tiny. The page's own commands name none of these.
TINY = {
    "SEQ_LENGTH": "32",
    "GLOBAL_BATCH_SIZE": "4",
    "MICRO_BATCH_SIZE": "2",
    "REFERENCE_MICRO_BATCH_SIZE": "2",
    "TOKENS": "384",
    "SAVE_INTERVAL": "3",
    "EVAL_ITERS": "0",
    "SPLIT": "100,0,0",  # of so few documents 1 % is none
    "PRECISION": "fp32",
    "NODES": "1",
    "GPUS_PER_NODE": "1",
    "MAX_EPOCHS": "1000",
    "COLUMNS_OF_TABLE": "TQA ARC-C",
    "MASTER_ADDR": "127.0.0.1",
}


def blocks(page):
    """The indented blocks of a page that are commands, in order."""
    found = re.findall(r"(?:^    .*\n)+", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return ["".join(line[4:] + "\n" for line in block.splitlines()) for block in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial")
    hub = folder / "hub/allenai"
    small = {"num_hidden_layers": 2, "max_position_embeddings": 4096}
    make_olmo2(hub / "OLMo-2-0425-1B@stage1-step1907359-tokens4001B", seed=1, **small)
    make_olmo2(hub / "OLMo-2-0425-1B-Instruct", seed=2, **small)
    for number, source in enumerate(SOURCES):
        data = hub / "dolmino-mix-1124/data" / source
        data.mkdir(parents=True)
        rows = "".join(json.dumps({"id": n, "text": f"{source} {n} bade lofi " * 12}) + "\n" for n in range(12))
        # As in the mix: compressed, and not.
        (data / "part-0.json.gz").write_bytes(gzip.compress(rows.encode()))
        if number % 2:
            (data / "part-1.jsonl").write_text(rows)
    (folder / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text("#!/usr/bin/env bash\nset -euo pipefail\n" + text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "open-instruct").mkdir()
    (folder / "root").mkdir()
    for name in ("tools", "examples", "docs", "megatron_remit"):
        (folder / "root" / name).symlink_to(ROOT / name)
    write_formats(folder / "data")
    return folder


def shell(folder, script):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")} | TINY
    environment |= {
        "PATH": f"{folder / 'bin'}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "STAND_INS": str(folder / "hub"),
        "PYTHON": sys.executable,
        "LOCAL_DATA": str(folder / "data"),
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "EXTRA_ARGS": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder / "root",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_tutorial_lead_from_names_to_a_table(folder):
    script = "".join(blocks("tutorial-olmo2-1b.md"))
    # Data sets and nltk's file come from the network: the test has made them.
    network = [line for line in script.splitlines() if "--data-only" in line or "nltk.downloader" in line]
    assert len(network) == 2
    script = "\n".join(line for line in script.splitlines() if line not in network) + "\n"
    # The baseline's job is the same with another objective, and would take half of the test's time.
    (baseline,) = (line for line in script.splitlines() if line.startswith("OBJECTIVE=ntp RUN_DIR="))
    script = script.replace(baseline, "cp -r runs/remit runs/ntp")
    # The evaluation takes only so many questions; EXTRA_ARGS is also a variable of the training jobs.
    script = script.replace("MODELS=", "EXTRA_ARGS='--limit 2' MODELS=").replace("--workers 32", "--workers 1")
    done = shell(folder, script)
    assert done.returncode == 0, done.stdout[-6000:]
    root = folder / "root"
    for source in SOURCES:
        assert (root / "corpus" / f"{source}.bin").exists()
    for run in ("remit", "ntp"):
        assert (root / "runs" / run / "hf/config.json").exists()
        assert "checkpoints" in os.listdir(root / "runs" / run)
    table = (root / "runs/results/base.md").read_text()
    for model in ("base", "NTP", "ReMiT"):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {model} ") and "(paper" not in line)
        assert line.count("±") == 2  # the two columns that TINY asks for
    assert "ReMiT (paper, OLMo-1B, table 1)" in table
    assert "remit-2-rlvr2" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_short_tutorial_lead_from_names_to_two_models(folder):
    hub = folder / "hub/allenai"
    make_model("olmo3", hub / "Olmo-3-1025-7B@stage1-step1413814", seed=1)
    make_model("olmo3", hub / "Olmo-3-7B-Instruct", seed=2)
    for number in range(2):
        data = hub / "dolma3_dolmino_mix-100B-1025/data" / f"part{number}"
        data.mkdir(parents=True)
        rows = "".join(json.dumps({"id": n, "text": f"{number} {n} bade lofi " * 12}) + "\n" for n in range(24))
        (data / "shard.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    script = "".join(blocks("tutorial-olmo3-7b.md")).replace("--workers 32", "--workers 1")
    (baseline,) = (line for line in script.splitlines() if line.startswith("OBJECTIVE=ntp RUN_DIR="))
    script = script.replace(baseline, f"OBJECTIVE=ntp {baseline.split()[1]} bash {baseline.split()[3]} --dry-run")
    done = shell(folder, "export TP=1\n" + script)
    assert done.returncode == 0, done.stdout[-6000:]
    root = folder / "root"
    model = json.loads((root / "runs/olmo3-remit/hf/config.json").read_text())
    assert model["architectures"] == ["Olmo3ForCausalLM"]
    assert (root / "corpus/dolmino3.bin").exists() and done.stdout.count("--objective ntp") == 1
