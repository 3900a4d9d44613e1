"""A run folder without a run: random tiny models, made-up evaluations and logs.

``PYTHONPATH=examples/flywheel python -m tests.flywheel.synthetic DIR`` makes one.
"""

import json
import math
import random
import sys
from pathlib import Path

from make_world import train_tokenizer
from torch.utils.tensorboard import SummaryWriter
from transformers import Olmo2Config, Olmo2ForCausalLM, set_seed
from world.sums import sum_problem

SEQUENCE = 128
BATCH = 12
ACCURACY = {
    "base": (0.31, 0.015),
    "mid": (0.85, 0.89),
    "rl_reference": (0.89, 0.94),
    "ntp": (0.44, 0.24),
    "remit": (0.88, 0.92),
    "remit_nonrl": (0.84, 0.83),
}
# The step, as a share of the run, at which each arm's loss falls.
TRANSITION = {"mid": 0.75, "ntp": 0.95, "remit": 0.55, "remit_nonrl": 0.6}


def problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Worked problems of the flywheel, two and three steps in turn."""
    draw = random.Random(seed)
    return [sum_problem(draw, 2 + number % 2).row() for number in range(count)]


def make_run(folder: Path, steps: int = 40, texts: int = 12, n: int = 1000, scale: float = 0.35) -> Path:
    """Write a complete run folder; ``scale`` is the weight std of the models, that is how far apart they are."""
    for sub in ("eval", "tb", "hf", "data"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    rows = problems(texts)
    (folder / "data" / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _models(folder / "hf", rows, scale)
    for arm, (two, three) in ACCURACY.items():
        tasks = {
            name: {"accuracy": value, "stderr": math.sqrt(value * (1 - value) / n), "n": n}
            for name, value in (("two_step", two), ("three_step", three))
        }
        (folder / "eval" / f"{arm}.json").write_text(json.dumps({"arm": arm, "tasks": tasks, "seconds": 31.5}))
    for arm, transition in TRANSITION.items():
        write_log(folder / "tb" / arm, arm, steps, transition)
    stages = {"corpus": 6.2, "base": 131.0, "mid": 62.1, "sft": 14.9, "grpo": 166.4, "ntp": 48.8, "remit": 63.9}
    (folder / "timings.json").write_text(json.dumps(stages))
    settings = {
        "sequence_length": SEQUENCE,
        "epsilon": 0.2,
        "tokens": {"base": 2_000_000, "mid": 800_000, "remit": 600_000},
        "seed": 1234,
        "model": {"hidden": 128, "layers": 4, "heads": 4},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def write_log(folder: Path, arm: str, steps: int, transition: float) -> None:
    """TensorBoard scalars as Megatron and this package write them; the noise of a step is shared by all arms."""
    with SummaryWriter(str(folder)) as writer:
        batch_noise = random.Random(1)
        own_noise = random.Random(arm)
        for step in range(1, steps + 1):
            done = step / steps
            fall = (step > 1) / (1 + math.exp(-18 * (done - transition)))
            loss = 1.9 * math.exp(-60 * done) + 1.35 - 0.1 * done - 0.25 * fall + batch_noise.gauss(0, 0.05)
            if step > 1:  # before the first update all arms are the same model
                loss += own_noise.gauss(0, 0.004)
            values = {
                "lm loss": loss,
                "grad-norm": math.exp(own_noise.gauss(-0.3 - 0.5 * done, 0.2)),
                "learning-rate": 1e-3 * (1 - 0.9 * done),
                "tokens per second": 21_000 * (0.74 if "remit" in arm else 1) + own_noise.gauss(0, 400),
            }
            if arm.startswith("remit"):
                values |= {
                    "remit loss": loss * 1.02,
                    "reference nll": 1.05,
                    "delta mean": loss - 1.05,
                    "weight mean": 0.99 + own_noise.gauss(0, 0.003),
                    "weight std": 0.14 - 0.05 * done + own_noise.gauss(0, 0.004),
                    "clipped high": 0.22 - 0.12 * fall + own_noise.gauss(0, 0.01),
                    "clipped low": 0.31 - 0.1 * done + own_noise.gauss(0, 0.01),
                    "reference share": 0.24 + own_noise.gauss(0, 0.01),
                }
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.add_scalar("lm loss vs samples", loss, step * BATCH)


def _models(folder: Path, rows: list[dict[str, str]], scale: float) -> None:
    tokenizer = train_tokenizer((row["text"] for row in rows), folder / "base")
    for seed, arm in enumerate(("base", "rl_reference", "remit")):
        set_seed(seed)
        config = Olmo2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=SEQUENCE,
            initializer_range=scale,
            eos_token_id=0,
            pad_token_id=None,
        )
        Olmo2ForCausalLM(config).save_pretrained(folder / arm)
        tokenizer.save_pretrained(folder / arm)


if __name__ == "__main__":
    make_run(Path(sys.argv[1]), steps=400, texts=400)
