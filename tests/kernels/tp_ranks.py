"""What each gloo rank does in test_tensor_parallel: every check in one start of four processes."""

from unittest import mock

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from megatron_remit import cpu
from megatron_remit import nll as nll_model
from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.nll import Vocabulary, token_nll
from megatron_remit.specs.olmo2 import olmo2_layer_spec
from tests.kernels.cases import computed, draw, float64_truth

cpu.install()

# name -> vocabulary, padded vocabulary, share of ignored targets. In the third, TP4 has a rank of padding only.
SHAPES = {
    "padded": (515, 520, 0.2),
    "odd": (1000, 1000, 0.0),
    "a rank of padding": (290, 400, 0.2),
    "all ignored": (515, 520, 1.0),
}


def compare(rank, folder, implementation="torch"):
    """Save this rank's largest differences, by name."""
    found = {}
    for size in (2, 4):
        groups = [torch.distributed.new_group(list(range(start, start + size))) for start in range(0, 4, size)]
        group = groups[rank // size]
        for name, (vocabulary, width, ignored) in SHAPES.items():
            found[f"TP{size}, {name}"] = difference(group, vocabulary, width, ignored, implementation)
        found[f"TP{size}, a shard of -inf"] = difference(group, 400, 400, 0.0, implementation, empty_shard=True)
        found[f"TP{size}, head"] = head_difference(group, implementation, sequence_parallel=False)
        found[f"TP{size}, head, sequence parallel"] = head_difference(group, implementation, sequence_parallel=True)
    for sequence_parallel in (False, True):
        for tied in (False, True):
            name = f"GPTModel, {'tied' if tied else 'untied'}{', sequence parallel' if sequence_parallel else ''}"
            found[name] = model_difference(sequence_parallel, tied)
    torch.save(found, folder / f"found{rank}.pt")


def difference(group, vocabulary, width, ignored, implementation, empty_shard=False):
    """Of a split vocabulary from one rank's: NLL, gradient and both from float64."""
    size, here = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    logits, targets, grad_output = draw(5, 3, width, vocabulary, ignored=ignored)
    if empty_shard:
        logits[..., : width // size] = float("-inf")
        targets = targets.clamp(min=width // size)
    shard = slice(here * width // size, (here + 1) * width // size)
    nll, gradient = computed(implementation, logits[..., shard].contiguous(), targets, grad_output, vocabulary, group)
    alone = computed("torch", logits, targets, grad_output, vocabulary)
    truth = float64_truth(logits, targets, grad_output, vocabulary)
    return {
        "nll": largest(nll, alone[0]),
        "gradient": largest(gradient, alone[1][..., shard]),
        "nll of float64": largest(nll, truth[0]),
        "gradient of float64": largest(gradient, truth[1][..., shard]),
    }


def head_difference(group, implementation, sequence_parallel):
    """Of the chunked head with split weights (and positions) from the whole logits on one rank."""
    size, here = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    generator = torch.Generator().manual_seed(9)
    hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((72, 2, 24), (80, 24)))
    targets = torch.randint(0, 77, (72, 2), generator=generator)
    mine = hidden.chunk(size)[here] if sequence_parallel else hidden
    nll = chunked_head_nll(
        mine, weight.chunk(size)[here], targets, 77, group, implementation, sequence_parallel, chunk_bytes=1
    )
    return {"nll": largest(nll, computed("torch", hidden @ weight.t(), targets, torch.ones(72, 2), 77)[0])}


def model_difference(sequence_parallel, tied):
    """Of `token_nll` through GPTModel at TP2: frozen (chunked head), trained, evaluated, and by Megatron."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(2)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    model = GPTModelBuilder(model_config(sequence_parallel, tied)).build_model(
        ProcessGroupCollection.use_mpu_process_groups()
    )
    tokens = torch.randint(0, 515, (6, 24), generator=torch.Generator().manual_seed(3))
    labels = tokens.roll(-1, 1)

    def nll(cross_entropy_impl):
        return model(
            tokens,
            torch.arange(24).expand(6, 24),
            None,
            labels=labels,
            output_processor=token_nll,
            output_processor_context=Vocabulary(515, cross_entropy_impl),
        )

    results = {}
    for impl in ("auto", "megatron"):
        model.zero_grad()
        nll_BS = nll(impl)
        nll_BS.sum().backward()
        results[impl] = nll_BS.detach(), {name: each.grad.clone() for name, each in model.named_parameters()}
    (whole, by_name), (expected, expected_by_name) = results["auto"], results["megatron"]
    with torch.no_grad():
        evaluated = nll("auto")
        model.requires_grad_(False)
        chunked = nll("auto")
        with mock.patch.object(nll_model, "chunked_head_nll", wraps=in_small_chunks) as head:
            small_chunks = nll("auto")
    return {
        "shape": float(chunked.shape != labels.shape),
        "head not used": float(not head.called),
        "evaluation and training": largest(evaluated, whole),
        "reference and policy": largest(chunked, whole),
        "small chunks": largest(small_chunks, whole),
        "nll": largest(whole, expected),
        "gradient": max(
            largest(by_name[name], each) / each.abs().max().item() for name, each in expected_by_name.items()
        ),
    }


def in_small_chunks(*args):
    return chunked_head_nll(*args, chunk_bytes=1)


def model_config(sequence_parallel, tied):
    transformer = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        normalization="RMSNorm",
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=2,
        sequence_parallel=sequence_parallel,
        pipeline_dtype=torch.float32,
        transformer_impl="local",
        use_cpu_initialization=True,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    return GPTModelConfig(
        transformer=transformer,
        transformer_layer_spec=olmo2_layer_spec,
        vocab_size=528,
        seq_length=24,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=tied,
    )


def largest(found, expected):
    return (found - expected).abs().max().item()
