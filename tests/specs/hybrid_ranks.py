"""What the rank does in test_hybrid: a GPTModel of OLMo-2's layers, and a HybridModel of the same layers and weights.

Shapes: B sequences, S tokens, H hidden, V vocabulary.
"""

import re
from dataclasses import replace

import torch
from megatron.core import parallel_state
from megatron.core.models.hybrid import hybrid_block
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_remit import cpu, patches
from megatron_remit.specs.native import gpt_config
from megatron_remit.specs.norm import RMSNorm
from tests.specs.family_ranks import build, load, run_arguments


class WithOutputProcessor(HybridModel):
    """A HybridModel that hands its hidden states to ``output_processor``, as GPTModel.forward does."""

    def forward(self, *args, output_processor, output_processor_context, **kwargs):
        """What the processor returns for the hidden states [S, B, H] and the logits made of them."""
        self.post_process = False
        try:
            hidden_SBH = super().forward(*args, **kwargs)
        finally:
            self.post_process = True
        return output_processor(hidden_SBH, output_layer=self.output_layer, context=output_processor_context)


def halves(layer):
    """The attention and the feed-forward part of a GPT layer's spec, each as a layer."""
    attention = {"mlp": IdentityOp, "mlp_bda": IdentityFuncOp}
    mlp = {"self_attention": IdentityOp, "self_attn_bda": IdentityFuncOp}
    return [ModuleSpec(layer.module, submodules=replace(layer.submodules, **cut)) for cut in (attention, mlp)]


def hybrid_name(name):
    """The name in the HybridModel of a tensor of the GPTModel."""
    name = name.replace("decoder.final_layernorm.", "decoder.final_norm.")

    def twice(found):
        number = 2 * int(found[1]) + found[2].startswith("mlp.")
        return f"decoder.layers.{number}.{found[2]}"

    return re.sub(r"decoder\.layers\.(\d+)\.(.*)", twice, name)


def build_hybrid(args):
    """The HybridModel of a run's arguments, of this project's layers."""
    config = gpt_config(args)
    layer = config.transformer_layer_spec(config).layer_specs[0]
    attention, mlp = halves(layer)
    stack = ModuleSpec(
        hybrid_block.HybridStack,
        submodules=hybrid_block.HybridStackSubmodules(attention_layer=attention, mlp_layer=mlp),
    )
    count = 2 * config.transformer.num_layers
    return WithOutputProcessor(
        replace(config.transformer, num_layers=count),
        stack,
        vocab_size=config.vocab_size,
        max_sequence_length=config.seq_length,
        hybrid_layer_pattern="*-" * config.transformer.num_layers,
        position_embedding_type="rope",
        rotary_base=config.rotary_base,
        parallel_output=True,
        share_embeddings_and_output_weights=False,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )


def compare(rank, folder, report):
    """Logits and gradients of both models, the tensors of their checkpoints, and the error without Transformer Engine,
    into ``report``."""
    cpu.install()
    patches.apply()
    args = run_arguments(folder, "tp1")
    (gpt,) = build(args)
    gpt.load_state_dict(*load([gpt], folder))
    found = {}
    try:
        build_hybrid(args)
    except ImportError as error:
        found["error"] = str(error)
    hybrid_block.TENorm = RMSNorm
    hybrid = build_hybrid(args)
    hybrid.load_state_dict({hybrid_name(name): value for name, value in gpt.state_dict().items()})
    ids_BS = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    batch = ids_BS, torch.arange(24).expand_as(ids_BS), None
    found["logits"] = gpt(*batch), HybridModel.forward(hybrid, *batch)
    found["processed"] = hybrid(*batch, output_processor=_logits, output_processor_context=None)
    direction_BSV = torch.randn(found["logits"][0].shape, generator=torch.Generator().manual_seed(1))
    for logits_BSV in found["logits"]:
        (logits_BSV * direction_BSV).sum().backward()
    found["gradients"] = [
        {rename(name): parameter.grad for name, parameter in model.named_parameters()}
        for model, rename in ((gpt, hybrid_name), (hybrid, str))
    ]
    metadata = {"singleton_local_shards": False, "dp_cp_group": parallel_state.get_data_parallel_group()}
    found["stored"] = [
        {
            shard.key: shard.global_shape
            for shard in model.sharded_state_dict(metadata=metadata).values()
            if hasattr(shard, "global_shape")
        }
        for model in (gpt, hybrid)
    ]
    torch.save(found, report)


def _logits(hidden_SBH, *, output_layer, context):
    logits_SBV, _ = output_layer(hidden_SBH)
    return logits_SBV.transpose(0, 1)
