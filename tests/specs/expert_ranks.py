"""What the one rank of test_experts does: the gradient of the loss with its auxiliary part, and a pass for scores."""

from pathlib import Path
from types import SimpleNamespace

import torch
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

from megatron_remit import cpu, patches
from megatron_remit.specs.experts import megatron_layer_spec
from megatron_remit.specs.native import gpt_config
from tests.specs.family_ranks import build, forward, load, run_arguments


def one_step(rank: int, folder: Path, coefficient: float) -> None:
    """The gradients that Megatron makes of a step of one microbatch, relative to those in ``folder``."""
    cpu.install()
    patches.apply()
    args = run_arguments(folder / "weights", "tp1")
    args.moe_aux_loss_coeff = coefficient
    assert args.calculate_per_token_loss
    (model,) = build(args)
    model.load_state_dict(load([model], folder / "weights")[0])
    truth = torch.load(folder / "truth.pt")
    vocabulary = model.embedding.word_embeddings.weight.size(0)
    tracker = get_moe_metrics_tracker()
    with torch.no_grad():
        unrecorded_BS = forward([model.eval()], truth["ids"], vocabulary, truth["labels"])
        forward([model.train()], truth["ids"], vocabulary, truth["labels"])
    scored = dict(tracker.metrics)
    nll_BS = forward([model], truth["ids"], vocabulary, truth["labels"])
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))  # what Megatron's schedule does
    nll_BS.sum().backward()
    model.ddp_config = SimpleNamespace(use_megatron_fsdp=False)
    expected = load([model], folder / "gradients")[0]
    (megatrons_own,) = megatron_layer_spec(gpt_config(args)).layer_specs
    report = {
        "router of megatron's own layer": megatrons_own.submodules.mlp.keywords["submodules"].router.__name__,
        "loss": nll_BS.mean().item(),
        "load balancing": tracker.metrics["load_balancing_loss"].values.tolist(),
        "recorded while scoring": list(scored),
        "bits without gradients": torch.equal(nll_BS.detach(), unrecorded_BS),
        # finalize_model_grads divides by the number of tokens.
        "gradients": {
            name: ((parameter.grad / nll_BS.numel() - expected[name]).abs().max() / expected[name].abs().max()).item()
            for name, parameter in model.named_parameters()
        },
    }
    torch.save(report, folder / "report.pt")
