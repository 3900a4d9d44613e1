"""What the one rank of test_rope does: RoPE's tables as the program's own model has them, and as transformers has them.

Shapes: S sequence, D rotary width.
"""

import copy
import sys

import torch
import transformers
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.training.arguments import parse_args, validate_args
from megatron.training.models.gpt import GPTModelBuilder

from megatron_remit import cpu
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.convert.families import read_config
from megatron_remit.model_arguments import NEUTRAL
from megatron_remit.specs.native import gpt_config

LAYERS = 4
# Everything that RoPE does not depend on is small. A list with an entry for each layer keeps its first ones.
SMALL = {
    "num_layers": LAYERS,
    "hidden_size": 8,
    "ffn_hidden_size": 8,
    "num_attention_heads": 2,
    "num_query_groups": 2,
    "padded_vocab_size": 128,
}


def compare(rank, folders, length, out):
    """For each folder: the largest difference of cosine and sine, per layer that has RoPE, saved in ``out``."""
    cpu.install()
    flags = "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --max-position-embeddings 8"
    sys.argv = ["pretrain", *flags.split(), "--micro-batch-size", "1", "--train-iters", "1", "--lr", "1"]
    common = validate_args(parse_args(add_remit_arguments))
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    torch.save({folder.name: _differences(folder, common, length) for folder in folders}, out)


def _differences(folder, common, length):
    family, config = read_config(folder)
    arguments = family.arguments(config)
    args = copy.copy(common)
    vars(args).update(NEUTRAL | arguments | SMALL)
    for name, value in arguments.items():
        if isinstance(value, list) and name != "spec":
            setattr(args, name, value[:LAYERS])
    model = GPTModelBuilder(gpt_config(args)).build_model(ProcessGroupCollection.use_mpu_process_groups())
    length = min(length, config["max_position_embeddings"])
    theirs = _tables_of_transformers(family.architecture, folder, length)
    kinds = config.get("layer_types") or [None] * LAYERS
    found = {}
    for index, layer in enumerate(model.decoder.layers):
        if args.no_rope_freq and args.no_rope_freq[index]:
            continue
        tables = _tables(model, layer.self_attention, length)
        expected = theirs[kinds[index]] if kinds[index] in theirs else theirs[None]
        found[index] = max((one - other).abs().max().item() for one, other in zip(tables, expected, strict=True))
    return found


def _tables(model, attention, length):
    """Cosine and sine [S, D] that Megatron's attention multiplies with."""
    latent = attention.config.multi_latent_attention
    rotary = getattr(attention, "plain_rotary", None) or (attention if latent else model).rotary_pos_emb
    angles, factor = rotary(length), attention._yarn_concentration_factor
    if isinstance(angles, tuple):
        angles, factor = angles[0], angles[1] if latent else factor
    return [function(angles[:, 0, 0]) * factor for function in (torch.cos, torch.sin)]


def _tables_of_transformers(architecture, folder, length):
    """The same by kind of layer; None for a model with one RoPE for all layers."""
    model_class = getattr(transformers, architecture)
    config = model_class.config_class.from_pretrained(folder)
    rotary_class = getattr(sys.modules[model_class.__module__], architecture.replace("ForCausalLM", "RotaryEmbedding"))
    rotary, positions, x = rotary_class(config), torch.arange(length)[None], torch.zeros(1)
    kinds = [{"layer_type": kind} for kind in config.layer_types] if architecture == "Olmo3ForCausalLM" else [{}]
    with torch.no_grad():
        return {kind.get("layer_type"): [table[0] for table in rotary(x, positions, **kind)] for kind in kinds[:LAYERS]}
