"""Random tiny Hugging Face model folders for tests: config, safetensors and tokenizer, made on the spot."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

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


def make_olmo2(
    folder: Path | str,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Olmo2ForCausalLM:
    """Write a random OLMo-2 folder and return its model (in eval mode).

    ``overrides`` go to ``Olmo2Config``; by default hidden 32, 4 layers, 4 heads with 2 key/value heads, ff 48 and a
    vocabulary of 515, which needs padding. The norm weights are random too: all-ones would hide a swapped norm.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {
        "vocab_size": 515,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
        "eos_token_id": 0,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
    }
    config = Olmo2Config(**(shape | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Olmo2ForCausalLM(config)
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
