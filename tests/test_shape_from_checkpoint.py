"""A model has the shape that its own checkpoint states: the policy with --use-checkpoint-args, the reference always."""

import re
import shutil

import pytest
from megatron.training import checkpointing

from megatron_remit import cpu
from megatron_remit.convert.families import read_config
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.model_arguments import NEUTRAL
from megatron_remit.reference.checkpoint import reference_arguments
from tests.hf_models import SHAPES, make_model
from tests.ranks import pretrain
from tests.test_bad_input import parsed

cpu.install()

# A policy that differs in everything that makes up a shape.
POLICY = dict.fromkeys(NEUTRAL.keys() - {"remit_vocab_size"}, "the policy's") | {"padded_vocab_size": 640}
# The run's own: the size must be that of its tokenizer, and its layout decides about the padding.
VOCABULARY_ROWS = ("padded_vocab_size", "remit_vocab_size")


@pytest.fixture(params=SHAPES)
def imported(request, tmp_path):
    """A checkpoint of each family, and what its arguments must become."""
    make_model(request.param, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    family, config = read_config(tmp_path / "hf")
    expected = NEUTRAL | family.arguments(config)
    return tmp_path / "checkpoint", {name: expected[name] for name in expected if name not in VOCABULARY_ROWS}


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({}, "num-layers .* --load takes the model's shape from the checkpoint with --use-checkpoint-args"),
        (
            # All that the tensors show of an OLMo-3, without its window and its kinds of RoPE.
            {
                "num_layers": 4,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "group_query_attention": True,
                "num_query_groups": 2,
                "max_position_embeddings": 64,
                "ffn_hidden_size": 48,
                "swiglu": True,
                "normalization": "RMSNorm",
                "disable_bias_linear": True,
                "position_embedding_type": "rope",
            },
            r"--load \S+ is an import, and its shape is not taken from it; pass --use-checkpoint-args",
        ),
    ],
)
def test_an_import_is_not_trained_with_a_shape_from_flags(shape, message, material):
    run = pretrain(1, *material.flags(use_checkpoint_args=None, **shape), check=False)
    assert run.returncode == 2 and run.scalars == {}
    assert re.search(rf"^error: .*{message}", run.output, re.MULTILINE), run.output[-2000:]


def test_an_import_holds_nothing_that_the_model_does_not_ask_for(material):
    """``raise_all``: a key of the checkpoint that the run does not load is an error, and the reverse."""
    run = pretrain(1, *material.flags(train_iters=1, dist_ckpt_strictness="raise_all"))
    assert len(run.scalars["lm loss"]) == 1
