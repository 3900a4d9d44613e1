"""OLMo-3 for Megatron's GPTModel: the layers of OLMo-2, most of them with a sliding window and with plain RoPE.

``--window-size`` and ``--window-attn-skip-freq`` say which layers have a window; the core attention keeps to it, ours
and Transformer Engine's alike. A model for long contexts has YaRN (``--position-embedding-type yarn``) in the layers
that see everything, and plain RoPE of the same base in the others (HF ``Olmo3RotaryEmbedding``). Megatron's GPTModel
computes one rotary embedding for all layers, so the layers with a window replace it.

Shapes: s this rank's part of the sequence (under context parallelism), S the whole of it, D head width.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.utils import is_layer_window_attention
from megatron.training.models.gpt import GPTModelConfig

from megatron_remit.errors import UserError
from megatron_remit.specs.olmo2 import Olmo2SelfAttention, post_norm_block

Rotary = Callable[[int], torch.Tensor]  # S -> the angles [s, 1, 1, D] of this rank's positions


class Olmo3SelfAttention(Olmo2SelfAttention):
    """OLMo-2's attention; in a layer with a window the angles are those of ``plain_rotary``, if that is given."""

    def __init__(self, *args: Any, plain_rotary: Rotary | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain_rotary: Rotary | None = None
        config = self.config
        if is_layer_window_attention(config.window_size, config.window_attn_skip_freq, self.layer_number):
            self.plain_rotary = plain_rotary
        if self.plain_rotary is not None:
            # Megatron multiplies cosine and sine by this factor, which belongs to YaRN.
            self._yarn_concentration_factor = 1.0

    def forward(
        self, *args: Any, rotary_pos_emb: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """As OLMo-2's; ``rotary_pos_emb`` [s, 1, 1, D] holds the angles of the layers without a window."""
        if self.plain_rotary is not None and rotary_pos_emb is not None:
            rotary_pos_emb = self.plain_rotary(rotary_pos_emb.size(0) * self.config.context_parallel_size)
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kwargs)


def olmo3_layer_spec(config: GPTModelConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage and the final norm; pass it as ``--spec megatron_remit.specs.olmo3 ..``.

    Raises :class:`UserError` for a setting that OLMo-3 does not have.
    """
    transformer = config.transformer
    if (
        transformer.transformer_impl == "transformer_engine"
        and transformer.context_parallel_size > 1
        and transformer.window_size is not None
        and transformer.cp_comm_type in (None, "p2p")
    ):
        raise UserError(
            "--context-parallel-size above 1 with --window-size: Transformer Engine has none where keys and values "
            "travel from rank to rank (p2p); pass --cp-comm-type a2a or all_gather"
        )
    plain_rotary = _plain_rotary(config) if config.position_embedding_type == "yarn" else None
    return post_norm_block(config, vp_stage, "OLMo-3", Olmo3SelfAttention, plain_rotary=plain_rotary)


def _plain_rotary(config: GPTModelConfig) -> Rotary:
    """One for all layers of a model chunk: it keeps what it computed."""
    return RotaryEmbedding(
        kv_channels=config.transformer.kv_channels,
        rotary_percent=config.rotary_percent,
        rotary_interleaved=config.transformer.rotary_interleaved,
        seq_len_interpolation_factor=config.seq_len_interpolation_factor,
        rotary_base=config.rotary_base,
        use_cpu_initialization=config.transformer.use_cpu_initialization,
    )
