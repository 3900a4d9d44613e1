"""What a training run saves is what the export writes: the same model at any layout, in the run's own dtype."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Olmo2ForCausalLM

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_io import CheckpointReader
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.model_arguments import not_neutral
from megatron_remit.reference.fingerprint import unseen_by_legacy
from tests.hf_models import make_olmo2
from tests.ranks import pretrain

pytestmark = pytest.mark.slow

LAYOUTS = {
    "one_rank": (1, []),
    "tp2_sequence_parallel": (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
    "pp2_vpp2": (2, ["--pipeline-model-parallel-size", 2, "--num-layers-per-virtual-pipeline-stage", 1]),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    make_olmo2(folder / "hf")
    import_hf(folder / "hf", folder / "start")
    return folder


def _train(imported, name, ranks, *flags):
    """Two steps from the imported checkpoint, exported; returns the run and the exported tensors."""
    start = imported / "start"
    run = pretrain(
        ranks,
        *("--load", start, "--use-checkpoint-args", "--save", imported / name, "--save-interval", 2),
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", start / "hf", "--mock-data"),
        *("--seq-length", 32, "--micro-batch-size", 2, "--global-batch-size", 4, "--train-iters", 2),
        *("--eval-iters", 0, "--eval-interval", 1000, "--log-interval", 1, "--weight-decay", 0),
        *("--use-distributed-optimizer", *flags),
    )
    export_hf(imported / name, start / "hf", imported / f"{name}_hf")
    return run, load_file(imported / f"{name}_hf" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(imported):
    # A large epsilon makes Adam's step proportional to the gradient, so rounding is not blown up to full steps.
    flags = ["--lr", "1e-2", "--adam-eps", "1e-1"]
    return {name: _train(imported, name, ranks, *layout, *flags) for name, (ranks, layout) in LAYOUTS.items()}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one_rank"])
def test_every_layout_trains_the_same_model(imported, trained, layout):
    (alone, expected), (run, found) = trained["one_rank"], trained[layout]
    assert run.series("lm loss") == pytest.approx(alone.series("lm loss"), abs=2e-6)
    assert run.series("grad-norm") == pytest.approx(alone.series("grad-norm"), rel=2e-3)
    start = load_file(imported / "hf" / "model.safetensors")
    for name, value in expected.items():
        moved = (value - start[name]).abs().max()
        assert moved > 0 and (found[name] - value).abs().max() < 2e-3 * moved, name


def test_a_bf16_run_is_exported_in_bf16_and_without_learning_unchanged(imported):
    _, found = _train(imported, "still", 2, "--tensor-model-parallel-size", 2, "--bf16", "--lr", 0)
    for name, value in load_file(imported / "hf" / "model.safetensors").items():
        assert torch.equal(found[name], value.bfloat16()), name
    assert Olmo2ForCausalLM.from_pretrained(imported / "still_hf").dtype == torch.bfloat16


def test_a_trained_checkpoint_has_only_the_features_of_its_family(imported, trained):
    """So a store that an earlier version wrote with such a reference opens by its legacy fingerprint."""
    saved = [CheckpointReader(imported / name).arguments for name in ("start", "one_rank")]
    assert [unseen_by_legacy(arguments) for arguments in saved] == [{}, {}]
    assert not_neutral(saved[0]) == not_neutral(saved[1])
