"""A run folder without a run: random tiny models and made-up cells, as the demo leaves one.

``PYTHONPATH=examples/flywheel python -m tests.flywheel.synthetic DIR`` makes one.
"""

import json
import random
import sys
from pathlib import Path

from make_world import train_tokenizer
from transformers import Olmo2Config, Olmo2ForCausalLM, set_seed
from world.sums import sum_problem

from tests.flywheel.cells import cell

SEQUENCE = 128
EFFECTS = {"ntp": 1.0, "remit": 0.85, "remit_before_rl": 1.0}


def problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Worked problems of the flywheel, two and three steps in turn."""
    draw = random.Random(seed)
    return [sum_problem(draw, 2 + number % 2).row() for number in range(count)]


def make_run(folder: Path, texts: int = 12, scale: float = 0.35) -> Path:
    """Write a complete run folder: one base, three orders. ``scale``: weight std of the models, so their distance."""
    for sub in ("eval", "hf", "data", "checks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    rows = problems(texts)
    (folder / "data" / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _models(folder / "hf", rows, scale)
    for arm, effect in EFFECTS.items():
        for order in "abc":
            path = folder / "eval" / f"methods.{arm}.1{order}.json"
            path.write_text(json.dumps(cell(arm, 1, order, effect, study="methods")))
    check = {"name": "ones", "claim": "weights of one give NTP", "equal": True, "compared": "losses of 5 steps"}
    (folder / "checks" / "ones.json").write_text(json.dumps(check))
    (folder / "token_kinds.json").write_text(json.dumps({"kinds": [{"kind": "result wrong", "weight": 0.8312}]}))
    stages = {"corpus": 6.2, "base": 131.0, "mid": 62.1, "sft": 14.9, "grpo": 166.4, "ntp": 48.8, "remit": 63.9}
    (folder / "timings.json").write_text(json.dumps(stages))
    settings = {
        "sequence_length": SEQUENCE,
        "epsilon": 0.2,
        "tokens": {"base": 2_000_000, "mid": 600_000},
        "seed": 1234,
        "model": {"hidden": 128, "layers": 4, "heads": 4},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def _models(folder: Path, rows: list[dict[str, str]], scale: float) -> None:
    tokenizer = train_tokenizer((row["text"] for row in rows), folder / "base")
    for seed, arm in enumerate(("base", "rl_reference")):
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
    make_run(Path(sys.argv[1]), texts=400)
