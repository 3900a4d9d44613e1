"""Fixtures shared by the tests that run the training program: models and a corpus, made once per session."""

from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_idx_path

from tests.hf_models import make_olmo2
from tests.ranks import ROOT, run_command

VOCABULARY = 515  # needs padding at every tensor-parallel size


@dataclass(frozen=True)
class Material:
    """What a run starts from. ``policy`` and ``reference`` are different random models of one tokenizer."""

    policy: Path
    reference: Path
    corpus: Path

    def flags(self, **overrides):
        """Flags of a short run from ``policy``; an override replaces a value, None drops the flag."""
        flags = {
            "load": self.policy,
            "use_checkpoint_args": True,
            "finetune": True,
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": self.policy / "hf",
            "make_vocab_size_divisible_by": 8,
            "seq_length": 24,
            "data_path": self.corpus,
            "split": "100,0,0",
            "eod_mask_loss": True,
            "micro_batch_size": 2,
            "global_batch_size": 8,
            "train_iters": 3,
            "lr": 1.0,
            "lr_decay_style": "constant",
            "optimizer": "sgd",
            "sgd_momentum": 0.0,
            "weight_decay": 0.0,
            "clip_grad": 0.0,
            "eval_iters": 0,
            "eval_interval": 1000,
            "log_interval": 1,
            "seed": 7,
        } | overrides
        listed = []
        for name, value in flags.items():
            if value is None or value is False:
                continue
            listed.append("--" + name.replace("_", "-"))
            if value is not True:
                listed.append(str(value))
        return listed

    def remit(self, **overrides):
        """The same with the ReMiT objective."""
        return self.flags(**{"objective": "remit", "reference_load": self.reference} | overrides)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def make_material(folder):
    """Two models, as Hugging Face folders hf_policy and hf_reference too, and a corpus in ``folder``."""
    for name, seed in (("policy", 1), ("reference", 2)):
        make_olmo2(folder / f"hf_{name}", seed=seed, vocab_size=VOCABULARY)
        source = folder / f"hf_{name}"
        done = run_command(["python", ROOT / "tools/import_hf.py", "--hf", source, "--out", folder / name])
        assert done.returncode == 0, done.output
    write_corpus(folder / "corpus", VOCABULARY)
    return Material(folder / "policy", folder / "reference", folder / "corpus")


def write_corpus(prefix, vocabulary, documents=300, seed=0):
    """Random documents of 3 to 60 tokens, each ended by token 0 (EOD): sequences have uneven loss masks."""
    draw = numpy.random.default_rng(seed)
    rows = [numpy.append(draw.integers(1, vocabulary, int(draw.integers(3, 60))), 0) for _ in range(documents)]
    write_documents(prefix, [torch.from_numpy(row) for row in rows])


def write_documents(prefix, documents):
    """A corpus of these token rows."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for tokens in documents:
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(get_idx_path(str(prefix)))


def pytest_collection_modifyitems(items):
    """The longest first, which are those with a limit of their own: at the end a worker would be alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
