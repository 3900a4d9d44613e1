"""Greedy accuracy on the held-out problems with lm-evaluation-harness, from local task files."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

TASKS = ("two_step", "three_step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with two_step.jsonl and three_step.jsonl")
    parser.add_argument("--arm", required=True, help="name of the model in the report")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--limit", type=int, help="problems of each task; default: all")
    parser.add_argument("--batch-size", type=int, default=250)
    options = parser.parse_args()
    import lm_eval
    from lm_eval.tasks import TaskManager

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            text = (Path(__file__).parent / "tasks" / f"{task}.yaml").read_text()
            Path(folder, f"{task}.yaml").write_text(text.replace("DATA", str(options.data.resolve())))
        results = lm_eval.simple_evaluate(
            model="hf", tasks=list(TASKS), limit=options.limit, batch_size=options.batch_size, device="cpu",
            # With the cache of logits on, requests that share a context but differ in length are scored wrongly.
            model_args={"pretrained": str(options.model), "dtype": "float32", "logits_cache": False},
            task_manager=TaskManager(include_path=folder, include_defaults=False), bootstrap_iters=0,
        )
    scores = {}
    for task in TASKS:
        accuracy = results["results"][task]["exact_match,answer"]
        count = results["n-samples"][task]["effective"]
        scores[task] = {"accuracy": accuracy, "stderr": (accuracy * (1 - accuracy) / count) ** 0.5, "n": count}
        print(f"{options.arm}: {task} {100 * accuracy:.1f} % of {count}")
    summary = {"arm": options.arm, "tasks": scores, "seconds": time.perf_counter() - start}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
