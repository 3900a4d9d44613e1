"""Made-up cells of a comparison, as the driver writes them: no model is trained."""

import json
from pathlib import Path

import numpy as np

EFFECT = {"ntp": 1.0, "remit": 0.85, "remit_no_clip": 0.75, "remit_before_rl": 1.0, "remit_permuted": 1.0, "rho1": 0.6}
PROBLEMS = {"two_step": 40, "three_step": 40, "maximum": 20}
STEPS = (200_000, 400_000, 600_000)


def cell(arm, base, order, effect, **changed):
    """One cell: nats fall towards ``effect`` of what NTP's end costs."""
    rng = np.random.default_rng(base)
    hard = {skill: rng.gamma(2.0, 0.3, count) for skill, count in PROBLEMS.items()}
    noise = np.random.default_rng([base, ord(order), len(arm)])
    points = []
    for tokens in STEPS:
        done = tokens / STEPS[-1]
        level = (1.0 + base / 10) * (3 - (3 - effect) * done) * (1 + noise.normal(0, 0.01))
        points.append(
            {
                "tokens": tokens,
                "seconds": tokens / 10_000,
                "nll": {skill: list(level * values) for skill, values in hard.items()},
            }
        )
    # As the driver leaves it: the last point alone is measured whole.
    points[-1] |= {"p_true": 0.9, "p_slip": 0.05 * effect, "kl_reference": 0.1 * effect}
    points[-1]["right"] = {skill: [int(value < 0.5) for value in values] for skill, values in hard.items()}
    content = {
        "study": "methods",
        "arm": arm,
        "base": base,
        "order": order,
        "errors": 0.3,
        "size": "1M",
        "stage": "mid",
    }
    logged = {"tokens": list(STEPS), "grad-norm": [1.0, 0.8, 0.7 * effect]}
    return content | {"settings": {}, "points": points, "tensorboard": logged} | changed


def campaign(folder: Path, everything: bool = True) -> Path:
    """A run folder of methods on 3 bases x 3 orders, and with ``everything`` one or more cells of each other study."""
    (folder / "eval").mkdir(parents=True)
    cells = [cell(arm, base, o, e) for arm, e in EFFECT.items() for base in (1, 2, 3) for o in "abc"]
    if everything:
        arms = {"ntp": 1.0, "remit": 0.85}
        for arm, e in arms.items():
            cells += [cell(arm, b, "a", e, study="lasting", stage=s) for b in (1, 2, 3) for s in ("mid", "sft", "grpo")]
            cells += [cell(f"second_{arm}", b, "a", 0.8 * e, study="flywheel") for b in (1, 2, 3)]
            for share in (0.0, 0.3, 0.5):
                own = {"study": "errors", "errors": share, "settings": {"wrong_results": share / 2}}
                cells += [cell(arm, b, "a", 1 - (1 - e) * share / 0.3, **own) for b in (1, 2, 3)]
            cells += [cell(arm, 1, o, e, study="size", size=size) for size in ("1M", "5M") for o in "ab"]
            cells += [cell(arm, 1, o, e * 1.01, study="threads", settings={"threads": 2}) for o in "ab"]
        new = {"ntp": 1.0, "remit": 0.85, "remit_permuted": 1.4}
        cells += [cell(arm, b, "n", e, study="again") for arm, e in new.items() for b in (1, 2, 3)]
        models = {"base": 1.5, "sft": 1.0, "rl_reference": 0.5, "sft_errors": 1.4, "rl_errors": 0.7}
        cells += [cell(arm, b, "a", e, study="models") for arm, e in models.items() for b in (1, 2, 3)]
        cells[-1]["settings"] = {"reward_before": 0.5, "reward": 0.625}
        found = (("result right", 900, 1.05), ("result wrong", 90, 0.85))
        kinds = [{"kind": kind, "tokens": tokens, "weight": weight} for kind, tokens, weight in found]
        (folder / "token_kinds.json").write_text(json.dumps({"kinds": kinds}))
        (folder / "done").mkdir()
        for name, seconds in {"base.b1.e30.1M": 600, "methods.ntp.b1.e30.1M.o1": 60}.items():
            (folder / "done" / name).write_text(json.dumps({"seconds": seconds}))
    for number, one in enumerate(cells):
        (folder / "eval" / f"{number:03}.json").write_text(json.dumps(one))
    return folder
