"""A step of the true program on fake CUDA tensors: what is counted, what repeats, and where an error is."""

import re

import pytest
from transformers import Olmo2Config

from megatron_remit.errors import UserError
from megatron_remit.launch.gpus import gpu
from megatron_remit.simulate import shim
from megatron_remit.simulate.run import simulate_run
from megatron_remit.simulate.table import describe, seconds_of

SIZE = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
FLAGS = (
    "--seq-length 256 --micro-batch-size 2 --global-batch-size 16 --train-iters 100 --lr 1e-4 --bf16 "
    "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --mock-data"
).split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    Olmo2Config(**SIZE, architectures=["Olmo2ForCausalLM"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def simulate(model, simulator):
    def call(*flags, objective="remit", gpus=4):
        reference = None if objective == "ntp" else model
        training = [*FLAGS, "--objective", objective, *flags]
        return simulate_run(model, reference, gpus, training, gpu("H100-80GB"), simulator=simulator)

    return call


@pytest.fixture(scope="module")
def online(simulate):
    return simulate()["rank 0"]


def test_every_phase_moves_bytes(online):
    phases = online["phases"]
    assert {"reference", "policy forward", "policy backward", "optimizer"} <= set(phases)
    assert all(phase["bytes"] > 0 and phase["seconds"] > 0 for phase in phases.values())


def test_the_products_are_those_of_the_formula(online):
    """A forward pass multiplies each token with each weight of a matrix once: 2 operations, the backward pass 4."""
    hidden, feed, vocabulary = SIZE["hidden_size"], SIZE["intermediate_size"], SIZE["vocab_size"]
    weights = SIZE["num_hidden_layers"] * (4 * hidden**2 + 3 * hidden * feed) + hidden * vocabulary
    tokens = 16 // 4 * 256
    forward, backward = (online["phases"][f"policy {name}"]["flops"] for name in ("forward", "backward"))
    assert 2 * weights * tokens <= forward <= 1.3 * 2 * weights * tokens  # attention is above the weights' products
    assert 4 * weights * tokens <= backward <= 1.5 * 4 * weights * tokens


def test_next_token_prediction_has_no_reference_and_the_same_policy(simulate, online):
    ntp = simulate(objective="ntp")["rank 0"]
    assert not any(name.startswith("reference") for name in ntp["phases"])
    assert ntp["phases"]["optimizer"] == {**online["phases"]["optimizer"], "peak": ntp["phases"]["optimizer"]["peak"]}
    assert ntp["peak"] < online["peak"]
    # A kernel of this small model takes the floor, and ReMiT's loss has some more of them.
    assert seconds_of(online, online=False) == pytest.approx(seconds_of(ntp, online=True), rel=0.2)


def test_the_stages_of_a_pipeline_are_simulated_each(simulate):
    ranks = simulate("--pipeline-model-parallel-size", "2")
    assert list(ranks) == ["rank 0", "rank 2"]
    text = describe(ranks, 16 * 256, 4, gpu("H100-80GB"))
    speed = float(re.search(r"store, NTP .* ([\d,]+) tokens/s a GPU", text)[1].replace(",", ""))
    read = float(re.search(r"a store is read at ([\d.]+) MB/s a GPU", text)[1])
    assert read == pytest.approx(2 * speed / 1e6, abs=0.006) and read > 0  # float16


def test_a_tensor_on_the_wrong_device_is_found_at_its_line(model, simulator, tmp_path, monkeypatch):
    """The bug is in a norm of a file beside the project, which adds a tensor of the CPU."""
    number, training = plant("x = x + torch.ones(x.size(-1))", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=rf"megatron_remit_planted\.py:{number}: .*device"):
        simulate_run(model, None, 4, training, gpu("H100-80GB"), ("megatron_remit_planted",), simulator)


def test_an_operator_on_another_stream_is_found_at_its_line(model, simulator, tmp_path, monkeypatch):
    number, training = plant(
        "torch.cuda.set_stream(other); x = x + 1.0; torch.cuda.set_stream(own)", tmp_path, monkeypatch
    )
    found = simulate_run(model, None, 4, training, gpu("H100-80GB"), ("megatron_remit_planted",), simulator)["rank 0"]
    # Its backward pass is there too.
    assert [line for line in found["side_streams"] if line.endswith(f"megatron_remit_planted.py:{number} planted")]


def plant(bug, folder, monkeypatch):
    """Write the module that puts ``bug`` into a norm; its line there, and the flags of a run."""
    text = PLANTED.replace("BUG", bug)
    (folder / "megatron_remit_planted.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return next(i for i, line in enumerate(text.splitlines(), 1) if bug in line), [*FLAGS, "--objective", "ntp"]


PLANTED = """import torch
from megatron_remit.specs import norm

planted_from = norm.RMSNorm.forward


def planted(self, x):
    own, other = torch.cuda.current_stream(), torch.cuda.Stream()
    BUG
    return planted_from(self, x)


norm.RMSNorm.forward = planted
"""


def test_where_weights_are_drawn_changes_no_step(simulate, online):
    drawn = simulate("--use-cpu-initialization")["rank 0"]
    assert (drawn["phases"], drawn["peak"]) == (online["phases"], online["peak"])


def test_packed_documents_need_a_corpus(simulate):
    with pytest.raises(UserError, match=r"--dataloader-inter-document-masking.* a simulation reads no corpus"):
        simulate("--dataloader-inter-document-masking")


def test_without_a_compiler_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="C compiler"):
        shim.environment()
