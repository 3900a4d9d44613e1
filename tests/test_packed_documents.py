"""Packed documents (THD) and document masks: one key and one store for both, and the same figures in every family."""

import pytest
import torch

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.score_store.keys import row_key
from tests.hf_models import make_model
from tests.ranks import pretrain
from tests.score_store.programs import score

MASKS = {"reset_attention_mask": True, "reset_position_ids": True}
PACKED = {"dataloader_inter_document_masking": True}


@pytest.mark.slow
@pytest.mark.parametrize("scored_with, read_with", [(MASKS, PACKED), (PACKED, MASKS)], ids=["packed", "masked"])
def test_a_store_serves_both_ways_of_keeping_documents_apart(scored_with, read_with, material, tmp_path):
    store, rows = tmp_path / "store", {"row_seed": 3, "score_dtype": "float32"}
    score(1, store, *material.remit(**rows, **scored_with))
    from_store = {"score_store": store, "reference_load": None, "row_seed": 3}
    run = pretrain(1, *material.remit(**from_store, **read_with))
    online = pretrain(1, *material.remit(row_seed=3, **read_with))
    for tag in ("lm loss", "reference nll", "remit loss"):
        assert run.series(tag) == pytest.approx(online.series(tag), rel=2e-5), tag


def test_the_key_of_a_row_is_that_of_its_borders():
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 50, (12,), generator=draw)
    document_S = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3])
    common = {"tokens": tokens, "labels": tokens.roll(-1), "position_ids": torch.tensor([*range(4), 0, *range(6), 0])}
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    mask = ~(causal & (document_S[:, None] == document_S[None]))[None]
    starts = torch.full((13,), 12, dtype=torch.int32)
    starts[:4] = torch.tensor([0, 4, 5, 11])
    masked, packed = common | {"attention_mask": mask}, common | {"cu_seqlens": starts}
    assert row_key(masked, True, True) == row_key(packed, True, True)
    starts[3] = 10
    assert row_key(masked, True, True) != row_key(packed, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["youtu", "smollm3", "olmo3", "qwen3_moe"])
def test_other_layers_know_packed_documents_too(family, tmp_path, material):
    """Latent attention, whose values are wider when packed; no positions; windows, two kinds of RoPE; experts."""
    shape = {"sliding_window": 6} if family == "olmo3" else {}
    for name, seed in (("policy", 1), ("reference", 2)):
        make_model(family, tmp_path / f"hf_{name}", seed=seed, **shape)
        import_hf(tmp_path / f"hf_{name}", tmp_path / name)
    models = type(material)(tmp_path / "policy", tmp_path / "reference", material.corpus)
    runs = [pretrain(1, *models.remit(train_iters=2, lr=1e-2, **how)) for how in (MASKS, PACKED)]
    for tag in ("lm loss", "reference nll", "grad-norm"):
        masked, packed = (run.series(tag) for run in runs)
        assert packed == pytest.approx(masked, rel=2e-5), tag
