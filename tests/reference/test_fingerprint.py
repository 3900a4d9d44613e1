"""The fingerprint of a reference covers all that its arguments change, and stores with the legacy one still open."""

import argparse
import hashlib
import json

import pytest
import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_remit import cpu
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_io import check_shards
from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.model_arguments import MODEL_ARGUMENTS, NEUTRAL
from megatron_remit.reference.checkpoint import saved_arguments
from megatron_remit.reference.fingerprint import (
    legacy_fingerprint,
    reference_fingerprint,
    unseen_by_legacy,
)
from megatron_remit.score_store.manifest import Identity, Manifest, create_manifest
from megatron_remit.scoring import session
from tests.hf_models import SHAPES, make_model
from tests.score_store.synthetic import key
from tests.test_bad_input import parsed

cpu.install()

# As stores of format 1 were first written with them.
LEGACY_NAMES = """num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels norm_epsilon
    layernorm_epsilon normalization rotary_base rotary_percent rotary_interleaved no_rope_freq qk_layernorm swiglu
    untie_embeddings_and_output_weights spec remit_vocab_size use_rope_scaling rope_scaling_factor
    multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim""".split()


def with_values(saved, **values):
    return argparse.Namespace(**vars(saved) | values)


@pytest.fixture(scope="module")
def youtu(tmp_path_factory):
    """A reference with multi-latent attention: its folder and its arguments."""
    folder = tmp_path_factory.mktemp("youtu")
    make_model("youtu", folder / "hf", tokenizer=False)
    import_hf(folder / "hf", folder / "checkpoint")
    return folder / "checkpoint/release", saved_arguments(folder / "checkpoint/release")


@pytest.mark.parametrize("name", [row.name for row in MODEL_ARGUMENTS if row.fingerprint])
def test_every_argument_of_the_fingerprint_changes_it(name, youtu):
    folder, saved = youtu
    assert reference_fingerprint(folder, saved) != reference_fingerprint(folder, with_values(saved, **{name: "x"}))


def test_references_that_differ_only_in_what_the_legacy_list_lacks_differ(youtu):
    folder, saved = youtu
    others = [
        saved,
        *(with_values(saved, window_size=(size, 0)) for size in (8, 16)),
        *(with_values(saved, softmax_type=kind) for kind in ("off-by-one", "learnable")),
        *(with_values(saved, rope_type=kind) for kind in (None, "yarn")),
    ]
    assert len({legacy_fingerprint(folder, other) for other in others}) == 1
    assert len({reference_fingerprint(folder, other) for other in others}) == len(others)


def test_neutral_values_count_as_not_stated(youtu):
    folder, saved = youtu
    assert reference_fingerprint(folder, argparse.Namespace(**NEUTRAL | vars(saved))) == reference_fingerprint(*youtu)


def test_the_legacy_fingerprint_is_that_of_the_first_stores(youtu):
    folder, saved = youtu
    entries = check_shards(folder).state_dict_metadata.items()
    tensors = sorted(
        (name, list(entry.size), str(entry.properties.dtype))
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    )
    content = (folder / "__0_0.distcp").read_bytes()
    shape = {name: str(getattr(saved, name, None)) for name in LEGACY_NAMES}
    first = json.dumps([tensors, [("__0_0.distcp", len(content))], shape]).encode()
    assert legacy_fingerprint(folder, saved) == hashlib.sha256(first + content).hexdigest()


# They came after the table, with windows and YaRN or with experts that are not scaled to a sum of 1: no store was
# written for them with a legacy fingerprint.
@pytest.mark.parametrize("family", sorted(SHAPES.keys() - {"olmo3", "olmoe"}))
def test_the_legacy_fingerprint_stands_for_every_import_and_what_is_trained_from_it(family, tmp_path):
    make_model(family, tmp_path / "hf", tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    saved = saved_arguments(tmp_path / "checkpoint/release")
    assert unseen_by_legacy(saved) == {}
    assert unseen_by_legacy(argparse.Namespace(**NEUTRAL | vars(saved))) == {}


def test_what_the_legacy_fingerprint_does_not_see_is_named(youtu):
    _, saved = youtu
    assert unseen_by_legacy(with_values(saved, window_size=(8, 0), softmax_type="off-by-one")) == {
        "softmax_type": "off-by-one",
        "window_size": (8, 0),
    }
    assert unseen_by_legacy(with_values(saved, position_embedding_type="none")) == {"position_embedding_type": "none"}
    assert unseen_by_legacy(with_values(saved, rope_type=None)) == {"rope_type": None}
    # The name stays an argument without an effect where there is no latent attention.
    assert unseen_by_legacy(with_values(saved, rope_type=None, multi_latent_attention=False)) == {}


@pytest.fixture
def legacy_store(material, tmp_path):
    """The flags of a run, its reference's arguments, and a store that was made with the legacy fingerprint."""
    args = parsed(material.remit(score_store=tmp_path / "store"))
    args.remit_tokenizer_fingerprint = folder_fingerprint(material.policy / "hf")
    args.params_dtype = torch.float32
    folder = material.reference / "release"
    saved = saved_arguments(folder)
    expected = {"dtype": "float16"} | session.expected_identity(args)
    assert expected["reference"] == reference_fingerprint(folder, saved)
    identity = Identity(**expected | {"reference": legacy_fingerprint(folder, saved)})
    create_manifest(args.score_store, Manifest(identity, {}))
    return args, saved, identity


@pytest.mark.parametrize("create", [False, True])
def test_a_store_with_the_legacy_fingerprint_opens_appends_and_reads(create, legacy_store):
    args, _, identity = legacy_store
    store = session.open_store(args, create)
    assert store.manifest.identity == identity and len(store) == 0
    writer = session.StoreWriter(args.score_store, {})
    writer.add(key(1), torch.arange(identity.sequence_length).float().numpy())
    writer.close()
    again = session.open_store(args, create)
    assert again.read(key(1)).tolist() == list(range(identity.sequence_length))
    assert again.manifest.identity == identity


def test_another_reference_is_refused_with_the_legacy_fingerprint_too(legacy_store, material):
    args, *_ = legacy_store
    args.reference_load = material.policy
    with pytest.raises(UserError, match=r"another reference: found .*; --reference-load names another model"):
        session.open_store(args, create=False)


@pytest.mark.parametrize("create", [False, True])
def test_a_feature_that_the_legacy_fingerprint_did_not_see_is_refused_by_name(create, legacy_store, monkeypatch):
    args, saved, _ = legacy_store
    monkeypatch.setattr(session, "saved_arguments", lambda folder: with_values(saved, window_size=(8, 0)))
    with pytest.raises(UserError, match=r"store: .* legacy form, which does not cover window_size = \(8, 0\) of --ref"):
        session.open_store(args, create)
    # A new store holds the fingerprint that covers it.
    args.score_store = args.score_store.parent / "new"
    store = session.open_store(args, create=True)
    assert store.manifest.identity.reference == session.expected_identity(args)["reference"]
    assert session.open_store(args, create=False).manifest == store.manifest
