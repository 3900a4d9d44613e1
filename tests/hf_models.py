"""Random tiny Hugging Face model folders for tests: config, safetensors and tokenizer, made on the spot."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaForCausalLM,
    Olmo2ForCausalLM,
    Olmo3ForCausalLM,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    SmolLM3ForCausalLM,
    YoutuForCausalLM,
)

EOS = "<|endoftext|>"
PAD = "<|pad|>"
SMALLEST_VOCABULARY = 258  # the 256 bytes and two special tokens


def make_tokenizer(folder: Path | str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Write a byte-level BPE tokenizer of exactly ``vocab_size`` entries (ids 0 = EOS, 1 = PAD) into ``folder``."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} entries, not {vocab_size}")
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(words[i : i + 20]) for i in range(0, len(words), 20)], trainer)
    # The words may not have enough pairs to merge: named fillers bring the count to exactly vocab_size.
    core.add_tokens([f"<filler_{i}>" for i in range(core.get_vocab_size(), vocab_size)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


# By family: architecture, and a small config of its true ratios (heads, groups, ranks, feed-forward; vocabulary aside).
SHAPES: dict[str, tuple[type[PreTrainedModel], dict[str, Any]]] = {
    "olmo2": (
        Olmo2ForCausalLM,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    # Llama-3.1-8B; RoPE scaling is an override (LLAMA3_ROPE).
    "llama": (
        LlamaForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 224,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    # OLMo-3-32B, its window and YaRN's original length shorter than the tests' sequences.
    "olmo3": (
        Olmo3ForCausalLM,
        {
            "hidden_size": 80,
            "intermediate_size": 432,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "sliding_window": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            },
        },
    ),
    # Qwen2.5-0.5B
    "qwen2": (
        Qwen2ForCausalLM,
        {
            "hidden_size": 112,
            "intermediate_size": 608,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    # Qwen3-0.6B: its heads together are twice as wide as the hidden state.
    "qwen3": (
        Qwen3ForCausalLM,
        {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
    ),
    # Qwen3-30B-A3B: heads twice as wide as the hidden state together, experts of 3/8 of it.
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        {
            "hidden_size": 32,
            "intermediate_size": 96,
            "moe_intermediate_size": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
    ),
    # OLMoE-1B-7B: every head has a key of its own, experts of half the hidden state.
    "olmoe": (
        OlmoeForCausalLM,
        {
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    ),
    # SmolLM3-3B; every fourth layer is without RoPE by default.
    "smollm3": (
        SmolLM3ForCausalLM,
        {"hidden_size": 64, "intermediate_size": 344, "num_attention_heads": 16, "num_key_value_heads": 4},
    ),
    # Youtu-LLM-2B
    "youtu": (
        YoutuForCausalLM,
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": 96,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
}
YARN_ROPE = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.3,
        "beta_fast": 16.0,
        "truncate": False,
    },
}
LLAMA3_ROPE = {
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def make_model(
    family: str,
    folder: Path | str,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> PreTrainedModel:
    """Write a random model folder of the family and return its model (in eval mode).

    ``overrides`` go to the config; by default ``SHAPES``, 4 layers and a vocabulary of 515, which needs padding. The
    norm weights are random too: all-ones would hide a swapped norm.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model_class, shape = SHAPES[family]
    common: dict[str, Any] = {
        "vocab_size": 515,
        "num_hidden_layers": 4,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    config = model_class.config_class(**(common | shape | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.uniform_(0.5, 1.5)
                else:
                    weight.normal_(0.0, 0.1)
    model = model.to(dtype).eval()
    model.save_pretrained(str(folder), max_shard_size=max_shard_size)
    if tokenizer:
        make_tokenizer(folder, config.vocab_size)
    return model


make_olmo2 = partial(make_model, "olmo2")
