"""What the benchmarks share: checks before the timing, and what each writes besides its figures: conditions,
percentiles, and a CSV that is whole or not there."""

import argparse
import csv
import io
import os
import platform
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from megatron_remit.artifacts import write_whole


def run_checks(about: str, checks: Callable[[torch.device], Iterable[tuple[str, Callable[[], None]]]]) -> None:
    """Run each (name, function) of ``checks(--device)`` and say how it went; exit status 1 if one failed. ``about`` is
    the program's ``--help``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    failed = 0
    count = 0
    for name, check in checks(torch.device(options.device)):
        count += 1
        try:
            check()
            print(f"ok      {name}", flush=True)
        except Exception as error:
            failed += 1
            # A failed launch and a wrong number both count; the other checks are still worth running.
            print(f"FAILED  {name}: {error}", flush=True)
            traceback.print_exc(limit=2)
    print(f"{count - failed} of {count} checks passed", flush=True)
    sys.exit(1 if failed else 0)


def conditions(*packages: str) -> dict[str, str]:
    """Commit, device, Python and the versions of ``packages``, as columns of a result."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "device": device(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in packages},
    }


def device() -> str:
    """The GPU's name, or the processor's with the number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").open() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    return f"CPU, {os.cpu_count()} cores, {name}"


def percentiles(name: str, values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """20th, 50th and 80th percentile under ``NAME_p20`` and so on."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {f"{name}_p{10 * i + 10}": round(cuts[i], digits) for i in (1, 4, 7)}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """``rows``, all of the same keys, as a CSV that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
