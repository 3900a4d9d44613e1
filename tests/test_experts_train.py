"""Mixtures of experts in the training program: every layout trains as one rank does, with every objective.

Auxiliary losses are on, and the vocabulary, the loss masks and the number of tokens of an expert are uneven.
"""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_remit.argument_checks import check_arguments
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from megatron_remit.reference import checkpoint
from megatron_remit.reference.checkpoint import reference_arguments
from tests.checkpoints import load_tensors
from tests.conftest import VOCABULARY, Material, write_corpus
from tests.hf_models import make_model
from tests.ranks import pretrain
from tests.score_store.programs import score
from tests.test_bad_input import parsed
from tests.test_exactness import assert_same_bits
from tests.test_objectives_in_training import assert_same_weights, final_weights, train_plan

BALANCED = {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01}
STEPS = 3  # ReMiT, RHO-1, distillation
RUN = BALANCED | {"train_iters": STEPS, "save_interval": STEPS, "lr": 0.3, "row_seed": 3}
EXPERTS_OVER_2 = {"expert_model_parallel_size": 2}
LAYOUTS = {
    # Experts are whole, and the ranks that share the other tensors share them out; the reference's are on every rank.
    "EP2 x TP2": (
        2,
        EXPERTS_OVER_2
        | {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1}
        | {"reference_expert_model_parallel_size": 1},
    ),
    "EP2 x PP2": (4, EXPERTS_OVER_2 | {"pipeline_model_parallel_size": 2}),
}
FIGURES = ("lm loss", "remit loss", "rho1 loss", "kd loss", "reference kl", "load_balancing_loss", "z_loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    for name, family, seed in (("policy", "qwen3_moe", 1), ("reference", "olmoe", 2), ("dense", "llama", 3)):
        make_model(family, folder / f"hf_{name}", seed=seed, vocab_size=VOCABULARY)
        import_hf(folder / f"hf_{name}", folder / name)
    write_corpus(folder / "corpus", VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def experts(folder):
    """Qwen3-MoE as the policy, OLMoE as the reference."""
    return Material(folder / "policy", folder / "reference", folder / "corpus")


@pytest.fixture(scope="module")
def one_rank(experts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank")
    return train_plan(experts, "experts", folder, **RUN), folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, experts, folder, one_rank, tmp_path):
    expected, expected_folder = one_rank
    ranks, overrides = LAYOUTS[layout]
    run = train_plan(experts, "experts", tmp_path / "run", ranks, **RUN | overrides)
    for name in FIGURES:
        assert run.series(name) and run.series(name) == pytest.approx(expected.series(name), rel=2e-5, abs=2e-6), name
    found, before = final_weights(tmp_path / "run", STEPS), load_tensors(experts.policy / "release")
    assert_same_weights(tmp_path / "run", expected_folder, STEPS)
    assert all(not torch.equal(tensor, before[name][:VOCABULARY]) for name, tensor in found.items())
    assert found["decoder.layers.mlp.experts.experts.linear_fc1.weight"].shape == (4, 4, 24, 32)
    export_hf(tmp_path / "run", experts.policy / "hf", tmp_path / "home")
    assert (
        load_file(tmp_path / "home" / "model.safetensors").keys()
        == load_file(folder / "hf_policy" / "model.safetensors").keys()
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "home")
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, min_new_tokens=3).shape == (1, 5)


@pytest.mark.slow
def test_weights_of_one_reproduce_megatrons_own_run_with_its_auxiliary_losses(folder, tmp_path):
    """OLMoE as its own reference. No padding rows, and the layers come from the checkpoint's spec in both runs."""
    make_model("olmoe", tmp_path / "hf", vocab_size=512)
    import_hf(tmp_path / "hf", tmp_path / "olmoe")
    write_corpus(tmp_path / "corpus", 512)
    material = Material(tmp_path / "olmoe", tmp_path / "olmoe", tmp_path / "corpus")
    adam = {"optimizer": "adam", "lr": 1e-2, "clip_grad": 1.0, "make_vocab_size_divisible_by": 1}
    adam |= BALANCED | {"train_iters": 2, "save_interval": 2}
    expected = pretrain(1, *material.flags(save=tmp_path / "ntp", **adam), module="tests.megatron_ntp")
    run = pretrain(1, *material.remit(save=tmp_path / "remit", remit_epsilon=0, **adam))
    for name in ("lm loss", "load_balancing_loss", "z_loss", "grad-norm"):
        assert len(run.series(name)) == 2 and run.series(name) == expected.series(name), name
    assert_same_bits(*(load_tensors(tmp_path / name / "iter_0000002") for name in ("remit", "ntp")))
    # The reported losses are without the auxiliary ones, and a reference equal to the policy differs in no bit.
    assert run.series("lm loss")[0] == run.series("reference nll")[0]
    assert run.series("delta mean")[0] == 0.0 and run.series("delta mean")[1] != 0.0


@pytest.mark.slow
def test_ranks_that_share_a_references_experts_score_together(folder, experts, one_rank, tmp_path):
    """One rank scores 7 rows of the first step's 8. Of two ranks that do the rest, one has no row of its own left, and
    only lends its experts. Then a dense policy reads the first step's scores, and the second step's are made online.

    A reference gives the same tokens the same NLLs, whatever the policy and however its experts are spread.
    """
    store, shared = tmp_path / "store", {"reference_expert_model_parallel_size": 2}
    flags = {"row_seed": 3, "score_dtype": "float32"}
    score(1, store, *experts.remit(**flags, train_iters=1, global_batch_size=7, micro_batch_size=1))
    run = score(2, store, *experts.remit(**flags, **shared, train_iters=1))
    assert "scored 0, found 4 of 4 rows of replica 0 of 2" in run.output
    dense = Material(folder / "dense", folder / "reference", folder / "corpus")
    run = pretrain(2, *dense.remit(**flags, **shared, train_iters=2, score_store=store, score_miss="online"))
    assert run.series("reference nll") == pytest.approx(one_rank[0].series("reference nll")[:2], rel=1e-6)
    assert "load_balancing_loss" not in run.scalars


def reference_of(material, world_size=4, **overrides):
    args = parsed(material.remit(**overrides))
    args.world_size, args.remit_tokenizer_fingerprint = world_size, None
    return reference_arguments(args)


def test_a_reference_takes_the_policys_layout_of_experts_unless_told_otherwise(folder, experts):
    assert reference_of(experts, **EXPERTS_OVER_2).expert_model_parallel_size == 2
    assert reference_of(experts, reference_expert_model_parallel_size=4).expert_model_parallel_size == 4
    dense = Material(folder / "policy", folder / "dense", folder / "corpus")
    assert reference_of(dense, **EXPERTS_OVER_2).expert_model_parallel_size == 1
    own = reference_of(experts, moe_expert_capacity_factor=1.0, moe_router_load_balancing_type="sinkhorn")
    assert (own.moe_expert_capacity_factor, own.moe_router_load_balancing_type) == (None, "none")


@pytest.mark.parametrize(
    ("reference", "world_size", "flags", "named"),
    [
        ("reference", 4, {"reference_expert_model_parallel_size": 3}, "its 4 experts do not divide over 3 ranks"),
        ("reference", 3, {"reference_expert_model_parallel_size": 2}, "take 2 x 1 x 1 ranks .* the 3 of the run"),
        (
            "reference",
            6,
            {"expert_tensor_parallel_size": 3},
            "have 16 feed-forward units each, .*parallel-size 3",
        ),
        ("dense", 4, {"reference_expert_model_parallel_size": 2}, "has no experts; leave it out"),
    ],
)
def test_a_layout_of_experts_that_the_reference_cannot_have_is_refused(folder, reference, world_size, flags, named):
    with pytest.raises(UserError, match=named):
        reference_of(Material(folder / "policy", folder / reference, folder / "corpus"), world_size, **flags)


def test_a_reference_whose_choice_of_experts_its_tensors_do_not_show_is_refused(experts, monkeypatch):
    saved = checkpoint.saved_arguments(experts.reference / "release")
    saved.moe_router_load_balancing_type = ["quantile_balancing"]
    monkeypatch.setattr(checkpoint, "saved_arguments", lambda folder: saved)
    with pytest.raises(UserError, match="trained with --moe-router-load-balancing-type quantile_balancing"):
        reference_of(experts)


def test_experts_under_tensor_parallelism_need_sequence_parallelism(experts):
    args = parsed(experts.flags(tensor_model_parallel_size=2, num_experts=4))
    with pytest.raises(UserError, match=r"--tensor-model-parallel-size 2 with 4 experts: .* --sequence-parallel"):
        check_arguments(args)
