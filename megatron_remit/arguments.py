"""The ReMiT argument group, added to Megatron's own parser, and the defaults that a run here needs."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_remit import cpu
from megatron_remit.objectives.base import Objective
from megatron_remit.objectives.registry import OBJECTIVES, objective_class
from megatron_remit.scoring.arguments import add_score_store_arguments
from megatron_remit.trust.loading import add_trust_arguments
from megatron_remit.watch.arguments import add_watch_arguments

_EXAMPLES = """next-token prediction, ReMiT with a reference that scores online, and ReMiT from a score store:
  --load DIR --use-checkpoint-args ...
  --load DIR --use-checkpoint-args ... --objective remit --reference-load RL_DIR
  --load DIR --use-checkpoint-args ... --objective remit --score-store STORE
"""


class _HelpOfGroup(argparse.Action):
    """``--help-remit``: the flags of the ReMiT group alone, with their defaults, out of Megatron's 800."""

    def __init__(self, option_strings: Sequence[str], dest: str, group: Any) -> None:
        help_text = "Show these flags alone, with their defaults, and end."
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help_text)
        self._group = group

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        formatter = _HelpWithDefaults(prog=parser.prog)
        formatter.start_section(self._group.title)
        formatter.add_arguments(self._group._group_actions)
        formatter.end_section()
        formatter.add_text(_EXAMPLES)
        print(formatter.format_help())
        parser.exit()


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default that is a value, and keeps the lines of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says = "default" in (action.help or "").lower()
        # By identity: 0.0 is equal to False, and a default to show.
        shown = not says and action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


def add_remit_arguments(
    parser: argparse.ArgumentParser, command_line: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """Add the ReMiT flags; on a machine without CUDA, also set the defaults of Megatron's flags that a CPU needs.

    ``command_line`` (default: that of the process) is looked at for ``--objective package.module:Class`` only: the
    flags of that objective join the others.
    """
    group = parser.add_argument_group("ReMiT")
    parser.add_argument("--help-remit", action=_HelpOfGroup, group=group)
    group.add_argument(
        "--objective",
        type=_objective,
        default="ntp",
        metavar="NAME",
        help="; ".join(f"{name}: {objective.summary}" for name, objective in OBJECTIVES.items())
        + "; package.module:Class: one of your own (docs/new-objective.md).",
    )
    _add_reference_arguments(group)
    for objective in (*OBJECTIVES.values(), *_own_objective(command_line)):
        objective.add_arguments(group)
    group.add_argument(
        "--cross-entropy-impl",
        choices=("auto", "triton", "torch", "megatron"),
        default="auto",
        help="What computes the NLL of policy and reference. auto: triton on CUDA, torch on a CPU. "
        "megatron: Megatron's own cross-entropy with the full logits of both models.",
    )
    group.add_argument(
        "--row-seed",
        type=int,
        metavar="N",
        help="Cut the corpus into rows in a document order drawn from N: the same rows in every epoch "
        "and for every --seed, which then only orders them. Default: as Megatron does.",
    )
    _add_run_arguments(group)
    add_score_store_arguments(group)
    add_trust_arguments(group)
    add_watch_arguments(group)
    _set_defaults(parser)
    return parser


def _add_run_arguments(group: Any) -> None:
    group.add_argument(
        "--allow-changed",
        nargs="+",
        default=[],
        metavar="NAME",
        help="What may differ from the run that --load goes on from, by its name in run.json: seed, corpora, "
        "objective, remit_epsilon, reference, ... Without the flag a difference is refused.",
    )
    group.add_argument(
        "--save-keep-last",
        type=_above_zero,
        default=1,
        metavar="N",
        help="With --save-retain-interval: how many of the newest checkpoints stay, besides those of its multiples.",
    )
    group.add_argument(
        "--heartbeat",
        type=Path,
        metavar="FILE",
        help="A file in which rank 0 notes each step as it ends, so that others see whether the run goes on.",
    )


def _add_reference_arguments(group: Any) -> None:
    group.add_argument(
        "--reference-load",
        type=Path,
        metavar="DIR",
        help="torch_dist checkpoint of the frozen RL model; tools/import_hf.py makes one.",
    )
    group.add_argument(
        "--reference-base-load",
        type=Path,
        metavar="DIR",
        help="torch_dist checkpoint of the frozen model that the reference was tuned from, for objectives with two "
        "references.",
    )
    group.add_argument(
        "--reference-micro-batch-size",
        type=int,
        metavar="N",
        help="Sequences in a forward pass of the reference. It keeps no activations, so more fit than "
        "in a policy microbatch. Default: --micro-batch-size.",
    )
    group.add_argument(
        "--allow-reference-special-tokens",
        action="store_true",
        help="Accept a reference whose tokenizer has other added tokens (special, reserved, a chat template's) than "
        "the policy's, even if the corpus holds them. Without the flag none of them may occur there.",
    )
    group.add_argument(
        "--reference-expert-model-parallel-size",
        type=int,
        metavar="N",
        help="Ranks that share the experts of a reference that has some. Default: as many as share the policy's.",
    )
    group.add_argument(
        "--reference-offload",
        action="store_true",
        help="Keep the weights of the frozen models in host memory while the policy trains.",
    )
    group.add_argument(
        "--reference-fp8",
        action="store_true",
        help="Run the reference in the policy's --fp8-format too, each tensor scaled by its own values. Default: in 16 "
        "bits, whatever the policy.",
    )


def _set_defaults(parser: argparse.ArgumentParser) -> None:
    """Defaults of Megatron's flags that the objectives, this machine or its packages need. A given flag wins."""
    # The divisor of equations 2 and 6 is the token count of the global batch.
    parser.set_defaults(calculate_per_token_loss=True, ckpt_format="torch_dist")
    # Megatron leaves it unset and then divides by it.
    parser.set_defaults(eval_interval=1000)
    # A dense [s, s] mask is only needed for document masking; attention is causal without it.
    parser.set_defaults(create_attention_mask_in_dataloader=False)
    # Experts: the router computes in fp32, at least what transformers does, and no token is gathered on every rank.
    parser.set_defaults(moe_router_dtype="fp32", moe_token_dispatcher_type="alltoall")
    # Known once the checkpoint's arguments and the tokenizer are read; stored in the run's own checkpoints.
    parser.set_defaults(remit_vocab_size=None, remit_tokenizer_fingerprint=None)
    # What makes the run this run (programs/identity.py); stored in its checkpoints.
    parser.set_defaults(remit_run=None)
    # How many of the policy's tokens the reference has too; known once its checkpoint's arguments are read.
    parser.set_defaults(remit_common_vocab_size=None)
    if importlib.util.find_spec("nvidia_resiliency_ext") is None:
        parser.set_defaults(async_strategy="mcore")
    if importlib.util.find_spec("transformer_engine") is None:
        parser.set_defaults(transformer_impl="local", apply_rope_fusion=False)
    # The extension that apex builds, by the name that Megatron imports: the output layer is Megatron's own, with
    # Transformer Engine too.
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
        parser.set_defaults(gradient_accumulation_fusion=False)
    if not cpu.has_cuda():
        parser.set_defaults(**cpu.default_arguments())


def _above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number above 0")
    return int(text)


def _objective(name: str) -> str:
    try:
        objective_class(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _own_objective(command_line: Sequence[str] | None) -> list[type[Objective]]:
    """The class from outside this package that the command line names, if it does."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--objective", default="ntp")
    try:
        name = finder.parse_known_args(command_line)[0].objective
        return [objective_class(name)] if name not in OBJECTIVES else []
    except (argparse.ArgumentError, ValueError):
        return []  # the parser itself says what is wrong
