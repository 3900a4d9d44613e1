"""What a run or a page was made with: versions, the commit of the source tree, the machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "megatron-core", "transformers", "trl", "lm_eval", "tokenizers", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter, None for one that is not installed, and the git commit."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"git commit": _commit()}


def machine() -> dict[str, Any]:
    """The device and the processor cores that this process may use."""
    if torch.cuda.is_available() and torch.version.cuda and torch.cuda.device_count():
        device = torch.cuda.get_device_name(0)
    else:
        device = "CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": device, "processor": _processor(), "cores": cores, "system": platform.platform(terse=True)}


def _commit() -> str | None:
    """The commit of the source tree, with '+changes' if tracked files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
