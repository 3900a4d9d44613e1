"""A model has the shape that its own checkpoint states: the policy with --use-checkpoint-args, the reference always."""

import shutil

import pytest

from megatron_remit import cpu

cpu.install()

from megatron.training import checkpointing  # noqa: E402

from megatron_remit.arguments import EXTRA_CHECKPOINT_ARGS  # noqa: E402
from megatron_remit.convert.families import read_config  # noqa: E402
from megatron_remit.convert.hf_to_megatron import import_hf  # noqa: E402
from megatron_remit.reference.checkpoint import reference_arguments  # noqa: E402
from tests.hf_models import SHAPES, make_model  # noqa: E402
from tests.ranks import pretrain  # noqa: E402
from tests.test_bad_input import parsed  # noqa: E402

# A policy that differs in everything that makes up a shape.
POLICY = dict.fromkeys(
    [
        *EXTRA_CHECKPOINT_ARGS,
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "kv_channels",
        "num_query_groups",
        "group_query_attention",
        "rotary_base",
        "untie_embeddings_and_output_weights",
    ],
    "the policy's",
)


@pytest.fixture(params=SHAPES)
def imported(request, tmp_path):
    """A checkpoint of each family, and what its arguments must become."""
    make_model(request.param, tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    family, config = read_config(tmp_path / "hf")
    return tmp_path / "checkpoint", EXTRA_CHECKPOINT_ARGS | family.arguments(config)


def test_the_policy_needs_no_flag_for_its_shape(imported, material):
    checkpoint, expected = imported
    args = parsed(material.flags(load=checkpoint))
    args.apply_rope_fusion = True  # Megatron's default, which a GPU has
    checkpointing.load_args_from_checkpoint(args)
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.apply_rope_fusion is not args.multi_latent_attention


@pytest.mark.slow
def test_a_given_tokenizer_stays_where_the_saved_runs_folder_is_gone(material, tmp_path):
    shutil.copytree(material.policy / "hf", tmp_path / "hf")
    pretrain(1, *material.flags(train_iters=1, save=tmp_path / "run", save_interval=1, tokenizer_model=tmp_path / "hf"))
    (tmp_path / "hf").rename(tmp_path / "moved")
    args = parsed(material.flags(load=tmp_path / "run", tokenizer_model=tmp_path / "moved"))
    checkpointing.load_args_from_checkpoint(args)
    assert args.tokenizer_model == str(tmp_path / "moved")
    args = parsed(material.flags(load=tmp_path / "run", tokenizer_model=None))
    checkpointing.load_args_from_checkpoint(args)
    assert args.tokenizer_model == str(tmp_path / "hf")


def test_the_reference_takes_nothing_from_the_policy(imported, material):
    checkpoint, expected = imported
    args = parsed(material.remit())
    args.reference_load = checkpoint
    vars(args).update(POLICY)
    args.remit_tokenizer_fingerprint = None
    own = reference_arguments(args)
    assert {name: getattr(own, name) for name in expected} == expected
    assert {name: getattr(args, name) for name in POLICY} == POLICY
