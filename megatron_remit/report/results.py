"""results.json: every figure of the report, with the versions and the machine that gave them."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_remit.report.figures import clip_threshold, smooth
from megatron_remit.report.load import ARM_NAMES, LOSS, Run
from megatron_remit.report.reading import tokens_to_reach_ntp
from megatron_remit.report.score import ScoredText

PACKAGES = ("torch", "megatron-core", "transformers", "trl", "lm_eval", "tokenizers", "numpy")


def results(run: Run, texts: list[ScoredText]) -> dict[str, Any]:
    """The content of results.json. Accuracies are shares in [0, 1], losses and deltas nats, times seconds."""
    return {
        "arms": {arm: _arm(run, arm) for arm in run.scores},
        "delta": _delta(run, texts),
        "timings_seconds": run.timings,
        "settings": run.settings,
        "versions": versions(),
        "machine": machine(),
    }


def mid_training(run: Run, arm: str) -> dict[str, Any]:
    """Tokens and seconds of mid-training behind an arm; for the RL reference those of the model before RL.

    Where no log tells, the values are None. The base model has had none.
    """
    if arm == "base":
        return {"tokens": 0, "seconds": 0.0}
    curves = run.curves.get("mid" if arm == "rl_reference" else arm)
    if curves is None:
        return {"tokens": None, "seconds": None}
    return {"tokens": int(curves.tokens[-1]), "seconds": round(curves.seconds(), 3)}


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


def _arm(run: Run, arm: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": ARM_NAMES[arm],
        "accuracy": {
            task: {"accuracy": score.accuracy, "stderr": score.stderr, "n": score.n, "wilson95": score.wilson()}
            for task, score in run.scores[arm].items()
        },
        "mid_training": mid_training(run, arm),
        "evaluation_seconds": run.eval_seconds[arm],
    }
    if arm in run.curves:
        curves = run.curves[arm]
        last = smooth(curves.series[LOSS])[-1]
        content["mid_training"] |= {
            "steps": len(curves.tokens),
            "final_loss": float(last) if np.isfinite(last) else None,
            "tokens_per_second_median": curves.median("tokens per second"),
            "reference_share_median": curves.median("reference share"),
        }
        if "ntp" in run.curves and arm.startswith("remit"):
            content["mid_training"]["tokens_to_reach_final_ntp_loss"] = tokens_to_reach_ntp(run, arm)
    return content


def _delta(run: Run, texts: list[ScoredText]) -> dict[str, Any]:
    delta = np.concatenate([text.margin for text in texts])
    centered = np.concatenate([text.centered for text in texts])
    quantiles = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    content: dict[str, Any] = {
        "texts": len(texts),
        "tokens": len(delta),
        "mean": float(delta.mean()),
        "std": float(delta.std()),
        "quantiles": {str(q): float(value) for q, value in zip(quantiles, np.quantile(delta, quantiles), strict=True)},
    }
    if run.epsilon is not None:
        threshold = clip_threshold(run.epsilon)
        content["clip_threshold"] = threshold if np.isfinite(threshold) else None
        content["clipped_low"] = float(np.mean(centered < -threshold))
        content["clipped_high"] = float(np.mean(centered > threshold))
    return content


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
