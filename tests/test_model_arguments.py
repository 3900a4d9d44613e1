"""The table of model arguments agrees with Megatron: its names, its defaults, and what it takes from a checkpoint."""

import argparse

import pytest
from megatron.training import checkpointing
from megatron.training.arguments import add_megatron_arguments

from megatron_remit import cpu
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.model_arguments import (
    MODEL_ARGUMENTS,
    NEUTRAL,
    Taken,
    has_effect,
    neutral,
    not_neutral,
    take_left_out,
)

cpu.install()

# What Megatron takes from a checkpoint although it is not what the model is.
TAKEN_FOR_THE_RUN = {
    "seq_length": "the run's rows",
    "attention_dropout": "training",
    "hidden_dropout": "training",
    "ckpt_format": "files",
    "tokenizer_model": "text",
    "tokenizer_type": "text",
    "tiktoken_pattern": "text",
    "moe_token_dispatcher_type": "communication",
    "moe_grouped_gemm": "kernels",
    "moe_single_grouped_weight": "layout of parameters",
    "moe_single_grouped_bias": "layout of parameters",
    # position_embedding_type says the same once Megatron has validated the arguments.
    "add_position_embedding": "an older name",
    "use_rotary_position_embeddings": "an older name",
    # --apply-layernorm-1p sets layernorm_zero_centered_gamma.
    "apply_layernorm_1p": "an older name",
    # GPTModel has none of these layers.
    "mtp_hybrid_override_pattern": "hybrid models",
    "hybrid_layer_pattern": "hybrid models",
    "mamba_state_dim": "Mamba",
    "mamba_head_dim": "Mamba",
    "mamba_num_groups": "Mamba",
    "mamba_num_heads": "Mamba",
}


class Sentinels(argparse.Namespace):
    """Has every attribute: the name itself, marked by ``who``."""

    def __getattr__(self, name):
        if name.startswith("__") or name in ("disable_bias_linear", "hybrid_override_pattern"):
            raise AttributeError(name)
        return f"{self.who}'s {name}"


def megatrons_choice(monkeypatch, run):
    """What Megatron's own loader (without this program's patch) sets in ``run`` from a checkpoint that has all."""
    saved = Sentinels(who="checkpoint")
    state = ({"args": saved, "checkpoint_version": 3.0, "iteration": 0}, "", False, None)
    monkeypatch.setattr(checkpointing, "_load_base_checkpoint", lambda *args, **kwargs: state)
    load = checkpointing.load_args_from_checkpoint
    getattr(load, "__wrapped__", load)(run)
    return {name for name, value in vars(run).items() if value == f"checkpoint's {name}"}


def test_megatron_takes_from_a_checkpoint_what_the_table_says(monkeypatch):
    plain = dict(load="folder", use_tokenizer_model_from_checkpoint_args=True, use_mp_args_from_checkpoint_args=False)
    always = megatrons_choice(monkeypatch, Sentinels(who="run", **plain))
    unset = dict.fromkeys([*NEUTRAL, *TAKEN_FOR_THE_RUN])
    if_unset = megatrons_choice(monkeypatch, argparse.Namespace(**unset | plain)) - always
    for taken, found in ((Taken.ALWAYS, always), (Taken.IF_UNSET, if_unset)):
        listed = {row.name for row in MODEL_ARGUMENTS if row.taken is taken}
        assert listed == found - TAKEN_FOR_THE_RUN.keys(), taken
    assert TAKEN_FOR_THE_RUN.keys() <= always | if_unset, "an exception that Megatron no longer takes"


def test_every_name_and_neutral_value_is_that_of_megatrons_parser():
    megatron = vars(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args([]))
    both = add_remit_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))
    assert len(NEUTRAL) == len(MODEL_ARGUMENTS), "a name stands twice"
    for defaults in (megatron, vars(both.parse_args([]))):
        known = {name: defaults[name] for name in NEUTRAL if not name.startswith("remit_")}
        assert known == {name: value for name, value in NEUTRAL.items() if name in known}
    assert {name for name in NEUTRAL if name.startswith("remit_")} == {"remit_vocab_size"}


def test_every_part_belongs_to_an_argument_of_the_table():
    assert {row.part_of for row in MODEL_ARGUMENTS} - {None} <= NEUTRAL.keys()


def test_a_run_takes_what_megatron_leaves_out_and_the_checkpoint_states():
    run = argparse.Namespace(window_size=None, softmax_type="vanilla", rotary_base=1, qk_layernorm=True)
    saved = argparse.Namespace(window_size=(8, 0), softmax_type=None, rotary_base=2)
    take_left_out(run, saved)
    assert vars(run) == {"window_size": (8, 0), "softmax_type": "vanilla", "rotary_base": 1, "qk_layernorm": True}


def test_not_neutral_is_what_differs_from_a_model_without_features():
    assert not_neutral(argparse.Namespace(**NEUTRAL)) == not_neutral(argparse.Namespace()) == {}
    some = argparse.Namespace(**NEUTRAL | {"softmax_type": "off-by-one", "add_bias_linear": False, "seed": 3})
    assert not_neutral(some) == {"softmax_type": "off-by-one"}


def test_a_part_has_an_effect_with_its_feature():
    rows = {row.name: row for row in MODEL_ARGUMENTS}
    assert has_effect(rows["softmax_type"], {})
    assert not has_effect(rows["rope_type"], {}) and not has_effect(
        rows["rope_type"], neutral("multi_latent_attention")
    )
    assert has_effect(rows["rope_type"], {"multi_latent_attention": True})


def test_neutral_knows_only_names_of_the_table():
    assert neutral("rotary_percent", "no_rope_freq") == {"rotary_percent": 1.0, "no_rope_freq": None}
    with pytest.raises(KeyError, match="norm_epsilon"):
        neutral("norm_epsilon")
