"""What SFT and GRPO share: the data, TRL's settings for a CPU, and saving."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

# No GPU, no reports, no checkpoints on the way; one line of log every ten steps.
CPU = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 10,
    "gradient_checkpointing": False,
    "seed": 1,
}


def parse(description: str) -> argparse.Namespace:
    """The arguments of both programs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder to start from")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of problems")
    parser.add_argument("--out", type=Path, required=True, help="new Hugging Face folder")
    parser.add_argument("--steps", type=int, required=True)
    return parser.parse_args()


def read(path: Path, columns: tuple[str, ...]) -> Dataset:
    """The named columns of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return Dataset.from_list([{name: row[name] for name in columns} for row in rows])


def save(trainer: Any, source: Path, out: Path) -> None:
    """Model and tokenizer under a temporary name, then renamed; ``metrics.json`` holds the trainer's log."""
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source).save_pretrained(temporary)
    (temporary / "metrics.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    os.rename(temporary, out)
