"""Models, texts and logs to compare."""

import json
import os

import pytest
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoTokenizer, Olmo2ForCausalLM

from tests.analysis.inputs import TEXTS
from tests.hf_models import make_olmo2


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("base", 1), ("rl", 2), ("sft", 3)):
        make_olmo2(folder / name, seed=seed)
    make_olmo2(folder / "other", seed=4, vocab_size=600)
    odd = {"wider": {"vocab_size": 600}, "narrow": {"vocab_size": 300}, "short": {"max_position_embeddings": 16}}
    for name in ("wider", "narrow", "short", "torn", "bare", "split", "nan"):
        model = make_olmo2(folder / name, seed=5, tokenizer=False, **odd.get(name, {}))
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / name)
    model.lm_head.weight.data[7] = float("nan")
    model.save_pretrained(folder / "nan")
    os.truncate(folder / "torn" / "model.safetensors", 10_000)
    (folder / "bare" / "model.safetensors").unlink()
    merges = json.loads((folder / "split" / "tokenizer.json").read_text())
    merges["model"]["merges"].reverse()
    (folder / "split" / "tokenizer.json").write_text(json.dumps(merges))
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    for name, level in (("ntp", 3.0), ("remit", 2.0)):
        with SummaryWriter(str(folder / "tb" / name)) as writer:
            for step in range(1, 101):
                writer.add_scalar("lm loss", level + 1 / step, step)
                writer.add_scalar("grad-norm", 10 ** (step / 50), step)
    rows = [["run", "tokens", "seconds", "accuracy"]]
    rows += [[run, 1000 * k, 10 * k, k / 10] for run in ("ntp", "remit") for k in (3, 1, 2)]
    (folder / "accuracy.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return folder


@pytest.fixture
def forwards(monkeypatch):
    """The shape of the input of each forward pass, as it happens."""
    shapes, real = [], Olmo2ForCausalLM.forward

    def forward(self, **inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return real(self, **inputs)

    monkeypatch.setattr(Olmo2ForCausalLM, "forward", forward)
    return shapes
