"""The plan of a run: what it refuses before a job starts, and what it says about steps, layout and memory."""

import json
import re
import shutil

import pytest
import torch
import transformers
from transformers import Olmo2Config, Olmo2ForCausalLM

from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.launch.plan import plan_run
from tests.conftest import write_corpus
from tests.hf_models import make_olmo2, make_tokenizer
from tests.launch.planned import OLMO_1B, PAPER


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and an RL model of OLMo-2-1B's shape, without weights (the plan reads none), and a corpus."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("base", "rl"):
        Olmo2Config(**OLMO_1B, architectures=["Olmo2ForCausalLM"]).save_pretrained(folder / name)
        make_tokenizer(folder / name, 515)
    write_corpus(folder / "corpus", 515)
    manifest = {"tokenizer_fingerprint": folder_fingerprint(folder / "base"), "tokens": 61234567890}
    (folder / "corpus.json").write_text(json.dumps(manifest))
    return folder


def plan(folder, *flags, gpus=32, base="base", rl="rl", corpus="corpus"):
    return plan_run(folder / base, folder / rl, gpus, [*PAPER, "--data-path", str(folder / corpus), *flags])


def gib(text, name):
    return float(re.search(rf"{name} +([\d.]+)", text)[1])


def test_the_papers_run_of_olmo_is_50b_tokens(folder):
    text = plan(folder)
    assert "23842 of 2,097,152 tokens (512 sequences of 4096), 50B tokens" in text
    assert "32 GPUs = TP 1 x PP 1 x CP 1 x DP 32, 4 microbatches of 4" in text
    assert "corpus: 61,234,567,890 tokens, read 0.843 times" in text


def test_weights_are_those_of_the_hugging_face_model(folder):
    with torch.device("meta"):
        model = Olmo2ForCausalLM(Olmo2Config(**OLMO_1B))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = plan(folder)
    assert gib(text, "reference: weights") == pytest.approx(2 * parameters / 2**30, rel=5e-3)
    # bf16 weight, fp32 gradient, and 12 bytes of Adam over 32 data-parallel ranks.
    assert gib(text, "weights, gradients, optimizer") == pytest.approx((6 + 12 / 32) * parameters / 2**30, rel=5e-3)


def test_an_objective_of_ones_own_brings_its_flags(folder, tmp_path, monkeypatch):
    (tmp_path / "alone.py").write_text(
        "from megatron_remit.objectives.ntp import NextToken\n"
        "class Alone(NextToken):\n"
        "    name = 'alone'\n"
        "    @classmethod\n"
        "    def add_arguments(cls, group):\n"
        "        group.add_argument('--alone-strength', type=float)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*PAPER, "--data-path", str(folder / "corpus"), "--objective", "alone:Alone", "--alone-strength", "0.5"]
    text = plan_run(folder / "base", None, 32, flags)
    assert "50B tokens" in text and "reference" not in text.replace(str(folder), "")


@pytest.mark.parametrize("architecture", ["SmolLM3ForCausalLM", "YoutuForCausalLM"])
def test_weights_of_the_other_families(architecture, folder, tmp_path):
    """transformers' default configs, which have 3.08B and 1.96B parameters."""
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(architectures=[architecture])
    config.save_pretrained(tmp_path / "model")
    make_tokenizer(tmp_path / "model", 515)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model_class(config).parameters())
    text = plan_run(tmp_path / "model", tmp_path / "model", 32, [*PAPER, "--data-path", str(folder / "corpus")])
    assert gib(text, "reference: weights") == pytest.approx(2 * parameters / 2**30, rel=5e-3)


def test_scoring_and_training_take_turns(folder):
    text = plan(folder, "--reference-micro-batch-size", "16", "--cross-entropy-impl", "megatron")
    logits = 16 * 4096 * 100352 * 6 / 2**30
    assert gib(text, "reference: scoring") == pytest.approx(logits, abs=0.01)
    expected = (
        gib(text, "weights, gradients, optimizer")
        + gib(text, "reference: weights")
        + max(logits, gib(text, "activations"))
    )
    assert gib(text, "peak") == pytest.approx(expected, abs=0.02)


def test_with_the_kernels_a_layer_of_the_reference_takes_more_than_a_chunk_of_its_logits(folder):
    """Four times the feed-forward width and three hidden states; a chunk of logits has 96 MiB."""
    text = plan(folder, "--reference-micro-batch-size", "16")
    layer = 16 * 4096 * (4 * 8192 + 3 * 2048) * 2 / 2**30
    assert gib(text, "reference: scoring") == pytest.approx(layer, abs=0.01)


def test_tensor_parallelism_divides_the_memory_and_the_ranks(folder):
    text = plan(folder, "--tensor-model-parallel-size", "2", "--sequence-parallel")
    assert "TP 2 x PP 1 x CP 1 x DP 16" in text
    assert gib(text, "reference: weights") == pytest.approx(gib(plan(folder), "reference: weights") / 2, rel=1e-2)


def test_ntp_needs_no_reference(folder):
    text = plan_run(folder / "base", None, 32, [*PAPER, "--data-path", str(folder / "corpus"), "--objective", "ntp"])
    assert "reference" not in text
    with pytest.raises(UserError, match=r"--reference-hf .*/rl with --objective ntp, which reads no reference"):
        plan(folder, "--objective", "ntp")


def test_scores_from_stores_need_no_model_in_memory(folder, tmp_path):
    """The memory is that of next-token prediction; where the folder of the reference is given, its tokens are read."""
    data = ["--data-path", str(folder / "corpus")]
    stores = ["--objective", "tokenclean", "--score-store", "s", "--score-store-base", "b"]
    ntp = plan_run(folder / "base", None, 32, [*PAPER, *data, "--objective", "ntp"])
    assert plan_run(folder / "base", None, 32, [*PAPER, *data, *stores]) == ntp
    assert plan(folder, *stores) == ntp
    make_olmo2(tmp_path / "other", vocab_size=400, max_position_embeddings=4096)
    with pytest.raises(UserError, match=r"other: its tokenizer .* is not that of"):
        plan(folder, *stores, rl=tmp_path / "other")
    assert gib(plan(folder, "--score-store", "s", "--score-miss", "online"), "reference: weights") > 0


def test_a_second_reference_is_counted_where_it_is_built(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "imported" / "hf")
    online = plan(folder, "--objective", "contrast", "--reference-base-load", str(tmp_path / "imported"))
    one = gib(plan(folder), "reference: weights")
    assert gib(online, "references: weights") == pytest.approx(2 * one, abs=0.02)
    stored = plan(folder, "--objective", "contrast", "--score-store-base", "b")
    assert gib(stored, "reference: weights") == one
    unknown = plan(folder, "--objective", "contrast", "--reference-base-load", str(tmp_path))
    assert f"{tmp_path}/hf/config.json is not there, so --reference-base-load is not counted" in unknown
    with pytest.raises(UserError, match="--objective contrast needs the NLLs of the reference's base"):
        plan(folder, "--objective", "contrast")


def test_eslm_needs_no_reference(folder):
    text = plan_run(folder / "base", None, 32, [*PAPER, "--data-path", str(folder / "corpus"), "--objective", "eslm"])
    assert "reference" not in text


@pytest.mark.parametrize(
    ("flags", "gpus", "message"),
    [
        (
            ["--tensor-model-parallel-size", "3"],
            32,
            "--tensor-model-parallel-size 3 x .* = 3 does not divide the 32 GPUs",
        ),
        ([], 24, "--global-batch-size 512 does not divide by --micro-batch-size 4 x the 24"),
        (["--reference-micro-batch-size", "32"], 32, "does not divide by --reference-micro-batch-size 32 x the 32"),
        (["--seq-length", "8192"], 32, "at most 4096 tokens, --seq-length is 8192"),
    ],
)
def test_settings_that_do_not_fit_together(flags, gpus, message, folder):
    with pytest.raises(UserError, match=message):
        plan(folder, *flags, gpus=gpus)


def test_a_reference_of_another_tokenizer(folder, tmp_path):
    make_olmo2(tmp_path / "other", vocab_size=400, max_position_embeddings=4096)
    with pytest.raises(UserError, match=r"other: its tokenizer .* is not that of .*base"):
        plan_run(folder / "base", tmp_path / "other", 32, [*PAPER, "--data-path", str(folder / "corpus")])


def test_corpora_of_another_tokenizer_or_unknown_origin(folder, tmp_path):
    def check(message):
        with pytest.raises(UserError, match=message):
            plan(folder, corpus=tmp_path / "corpus")

    check(r"corpus\.bin: no such file")
    for suffix in (".bin", ".idx"):
        shutil.copy(folder / f"corpus{suffix}", tmp_path)
    check(r"corpus\.json: no such file; it says which tokenizer")
    (tmp_path / "corpus.json").write_text(json.dumps({"tokenizer_fingerprint": "0" * 64, "tokens": 1}))
    check(r"corpus\.json: written with another tokenizer \(fingerprint 000000000000\)")
    (tmp_path / "corpus.json").write_text("{")
    check(r"corpus\.json: not a manifest")


def test_every_corpus_of_a_blend_is_checked(folder):
    blend = ["0.3", str(folder / "corpus"), "0.7", str(folder / "missing")]
    with pytest.raises(UserError, match=r"missing\.bin: no such file"):
        plan(folder, "--data-path", *blend)
