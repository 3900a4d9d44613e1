"""Greedy accuracy on the held-out problems with lm-evaluation-harness, from local task files."""

import argparse
import json
import tempfile
import time
from pathlib import Path

from megatron_remit.artifacts import write_whole

TASKS = ("two_step", "three_step")


def accuracies(model: Path, data: Path, limit: int | None, batch_size: int = 250) -> dict[str, dict[str, float]]:
    """Task -> ``accuracy`` (share), its binomial ``stderr`` and the number of problems ``n``.

    ``model`` is a Hugging Face folder; ``data`` holds two_step.jsonl and three_step.jsonl.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            text = (Path(__file__).parent / "tasks" / f"{task}.yaml").read_text()
            Path(folder, f"{task}.yaml").write_text(text.replace("DATA", str(data.resolve())))
        results = lm_eval.simple_evaluate(
            model="hf",
            tasks=list(TASKS),
            limit=limit,
            batch_size=batch_size,
            device="cpu",
            # With the cache of logits on, requests that share a context but differ in length are scored wrongly.
            model_args={"pretrained": str(model), "dtype": "float32", "logits_cache": False},
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
        )
    scores = {}
    for task in TASKS:
        accuracy = results["results"][task]["exact_match,answer"]
        count = results["n-samples"][task]["effective"]
        scores[task] = {"accuracy": accuracy, "stderr": (accuracy * (1 - accuracy) / count) ** 0.5, "n": count}
    return scores


def write_json(path: Path, content: object) -> None:
    """Whole or not at all, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with two_step.jsonl and three_step.jsonl")
    parser.add_argument("--arm", required=True, help="name of the model in the report")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--limit", type=int, help="problems of each task; default: all")
    options = parser.parse_args()
    start = time.perf_counter()
    scores = accuracies(options.model, options.data, options.limit)
    for task, score in scores.items():
        print(f"{options.arm}: {task} {100 * score['accuracy']:.1f} % of {score['n']}")
    write_json(options.out, {"arm": options.arm, "tasks": scores, "seconds": time.perf_counter() - start})


if __name__ == "__main__":
    main()
