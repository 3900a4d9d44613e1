"""What the campaign damages and feeds to the commands: small models, a text, a corpus, stores, a run; made once."""

import json
import os
import shutil
from pathlib import Path

from tests.conftest import Material, make_material
from tests.hf_models import make_olmo2
from tests.ranks import ROOT, pretrain, run_command
from tests.score_store.programs import score

SAVED = 2
STEPS = 4


def make_world(folder: Path) -> None:
    """Fill ``folder``; every path in it is named in ``tests/campaign/inputs/*.toml`` as it stands there."""
    material = make_material(folder)
    make_olmo2(folder / "hf_other", seed=3, vocab_size=600)
    lines = [json.dumps({"text": f"So the sum of {n} and {n} is {2 * n}. " * 5}) for n in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    corpus = ["--input", folder / "text.jsonl", "--output-prefix", folder / "made"]
    tokenizer = ["--tokenizer-model", folder / "hf_policy"]
    done = run_command(["python", ROOT / "tools/preprocess_corpus.py", *corpus, *tokenizer])
    assert done.returncode == 0, done.failure()
    exported = ["--megatron", material.policy, "--hf-template", folder / "hf_policy", "--out", folder / "exported"]
    done = run_command(["python", ROOT / "tools/export_hf.py", *exported])
    assert done.returncode == 0, done.failure()
    pretrain(1, *material.remit(**run_flags(folder / "run")), "--exit-interval", SAVED)
    for name, model in (("store", material.reference), ("store_small", material.policy)):
        score(1, folder / name, *material.remit(row_seed=3, reference_load=model))
    shutil.rmtree(folder / "corpus")  # the cached indexes of the rows


def run_flags(folder: Path | str) -> dict[str, object]:
    """Overrides of a training run of ``STEPS`` steps with state in its optimizer, which saves into ``folder``."""
    return {
        "train_iters": STEPS,
        "save": folder,
        "save_interval": SAVED,
        "lr": 1e-2,
        "optimizer": "adam",
        "objective": "remit",
    }


def copy_world(world: Path, folder: Path) -> Material:
    """A copy that may be damaged."""
    shutil.copytree(world, folder, symlinks=True)
    return Material(Path("policy"), Path("reference"), Path("corpus"))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file below ``folder``, and each folder, without following links: what is there."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place) / name
            state = path.lstat()
            known = (0, 0) if name in folders else (state.st_size, state.st_mtime_ns)
            found[str(path.relative_to(folder))] = known
    return found
