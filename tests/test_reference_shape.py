"""The reference has the shape that its own checkpoint states, and nothing of the policy's."""

import pytest

from megatron_remit import host

host.install()

from megatron_remit.arguments import EXTRA_CHECKPOINT_ARGS  # noqa: E402
from megatron_remit.convert.families import read_config  # noqa: E402
from megatron_remit.convert.hf_to_megatron import import_hf  # noqa: E402
from megatron_remit.reference.checkpoint import reference_arguments  # noqa: E402
from tests.hf_models import SHAPES, make_model  # noqa: E402
from tests.test_bad_input import parsed  # noqa: E402

# One policy that has every feature that a family can have.
EVERYTHING = {
    "layernorm_epsilon": 1e-3, "spec": ["megatron_remit.specs.olmo2", "olmo2_layer_spec"], "qk_layernorm": True,
    "no_rope_freq": [1, 0, 0, 0], "use_rope_scaling": True, "rope_scaling_factor": 2.0, "multi_latent_attention": True,
    "rope_type": "rope", "q_lora_rank": 9, "kv_lora_rank": 9, "qk_head_dim": 9, "qk_pos_emb_head_dim": 9,
    "v_head_dim": 9, "layernorm_zero_centered_gamma": True, "num_layers": 9, "kv_channels": 9, "rotary_base": 9,
    "untie_embeddings_and_output_weights": False, "group_query_attention": True, "num_query_groups": 9,
}


@pytest.mark.parametrize("family", SHAPES)
def test_the_reference_takes_nothing_from_the_policy(family, material, tmp_path):
    make_model(family, tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "reference")
    args = parsed(material.remit())
    args.reference_load = tmp_path / "reference"
    assert EXTRA_CHECKPOINT_ARGS.keys() <= EVERYTHING.keys()
    vars(args).update(EVERYTHING)
    args.remit_tokenizer_fingerprint = None
    own = reference_arguments(args)
    of_family, config = read_config(tmp_path / "hf")
    expected = EXTRA_CHECKPOINT_ARGS | of_family.arguments(config)
    assert {name: getattr(own, name) for name in expected} == expected
    assert {name: getattr(args, name) for name in EVERYTHING} == EVERYTHING
