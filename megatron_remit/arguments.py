"""The ReMiT argument group, added to Megatron's own parser, and what must hold between flags."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.objectives.base import Objective
from megatron_remit.objectives.registry import OBJECTIVES, objective_class
from megatron_remit.scoring.arguments import (
    add_score_store_arguments,
    check_base,
    check_score_store,
    scores_ahead,
    scores_base_ahead,
)

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
        return action.help if says or action.default in (None, False) else super()._get_help_string(action)


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
    add_score_store_arguments(group)
    _set_defaults(parser)
    return parser


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
    # How many of the policy's tokens the reference has too; known once its checkpoint's arguments are read.
    parser.set_defaults(remit_common_vocab_size=None)
    if importlib.util.find_spec("transformer_engine") is None:
        parser.set_defaults(transformer_impl="local", apply_rope_fusion=False)
    # The extension that apex builds, by the name that Megatron imports: the output layer is Megatron's own, with
    # Transformer Engine too.
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
        parser.set_defaults(gradient_accumulation_fusion=False)
    if not cpu.has_cuda():
        parser.set_defaults(**cpu.default_arguments())


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


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse combinations of flags that cannot work.

    Raises:
        UserError: names the flag, what was found and what to do.
    """
    if args.reset_attention_mask:
        args.create_attention_mask_in_dataloader = True
        if args.transformer_impl == "transformer_engine":
            raise UserError(
                "--reset-attention-mask with --transformer-impl transformer_engine: Megatron asks Transformer Engine "
                "for causal attention, which ignores the mask; use --transformer-impl local"
            )
        if args.pipeline_model_parallel_size > 2 or args.virtual_pipeline_model_parallel_size:
            raise UserError(
                f"--reset-attention-mask with --pipeline-model-parallel-size {args.pipeline_model_parallel_size} and "
                f"{args.virtual_pipeline_model_parallel_size or 1} model chunks a stage: the chunks between the first "
                "and the last read no data and so know no document borders; use at most 2 stages of one chunk"
            )
    if args.cross_entropy_impl == "triton" and not cpu.has_cuda() and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "--cross-entropy-impl triton needs CUDA, and there is none; use 'auto' or 'torch' "
            "(the environment variable TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, to test them)"
        )
    if args.row_seed is not None and args.mock_data:
        raise UserError("--row-seed cuts a corpus into rows, and --mock-data has none; leave one of them out")
    if args.num_experts is not None and args.tensor_model_parallel_size > 1 and not args.sequence_parallel:
        raise UserError(
            f"--tensor-model-parallel-size {args.tensor_model_parallel_size} with {args.num_experts} experts: Megatron "
            "trains experts under tensor parallelism with --sequence-parallel only; pass it"
        )
    chosen = objective_class(args.objective)
    _check_not_in_vain(args, chosen)
    for objective in OBJECTIVES.values():
        if not issubclass(chosen, objective):  # an heir takes the flags of its parent
            objective.check_arguments(args, chosen=False)
    check_score_store(args)
    check_base(args)
    if chosen.looks_ahead():
        _check_look_ahead(args)
    chosen.check_arguments(args, chosen=True)


def _check_not_in_vain(args: argparse.Namespace, chosen: type[Objective]) -> None:
    """Refuse a reference that the objective does not read: the run would be next-token prediction without a word."""
    if args.reference_load is not None and not chosen.needs_reference:
        raise UserError(
            f"--reference-load {args.reference_load} with --objective {args.objective}, which reads no reference; give "
            "--objective remit (or another with a reference), or leave --reference-load out"
        )
    if args.skip_train and chosen.looks_ahead():
        raise UserError(
            f"--skip-train with --objective {args.objective}: evaluation is next-token prediction and reads no "
            "reference; leave --objective and the reference's flags out"
        )


def check_tokenizer(args: argparse.Namespace, tokenizer: Any, model: str) -> None:
    """Refuse a tokenizer (Megatron's object) that does not fit the model or the objective.

    ``args.remit_vocab_size`` is the number of embedding rows, ``model`` where they are.

    Raises:
        UserError: it has more tokens than the model has rows, or the objective cannot work with it.
    """
    if tokenizer.vocab_size > args.remit_vocab_size:
        raise UserError(
            f"--tokenizer-model {args.tokenizer_model} has {tokenizer.vocab_size} tokens, but {model} has "
            f"{args.remit_vocab_size} embedding rows; use the tokenizer of that model"
        )
    objective_class(args.objective).check_tokenizer(args, tokenizer)


def _check_look_ahead(args: argparse.Namespace) -> None:
    if scores_ahead(args) and args.reference_load is None:
        raise UserError(
            f"--objective {args.objective} needs a reference: give --reference-load DIR (tools/import_hf.py makes one)"
        )
    if args.cuda_graph_impl != "none":
        raise UserError(
            f"--cuda-graph-impl {args.cuda_graph_impl} with --objective {args.objective}: Megatron captures its graphs "
            "in the first passes that it sees, which come before the step; use 'none'"
        )
    for flag, value in (
        ("--rampup-batch-size", args.rampup_batch_size),
        ("--step-batch-size-schedule", args.step_batch_size_schedule),
        ("--decrease-batch-size-if-needed", args.decrease_batch_size_if_needed or None),
    ):
        if value is not None:
            raise UserError(
                f"{flag} is not supported with --objective {args.objective}; give one --global-batch-size that divides "
                "over the ranks"
            )
    if args.defer_embedding_wgrad_compute:
        raise UserError(
            f"--defer-embedding-wgrad-compute is not supported with --objective {args.objective}: the reference's "
            "passes would join the deferred work; leave the flag out"
        )
    if scores_ahead(args) or scores_base_ahead(args):
        _check_reference_micro_batch(args)


def _check_reference_micro_batch(args: argparse.Namespace) -> None:
    if args.reference_micro_batch_size is None:
        args.reference_micro_batch_size = args.micro_batch_size
    size = args.reference_micro_batch_size
    sequences = args.global_batch_size // args.data_parallel_size
    if size < 1 or sequences % size:
        raise UserError(
            f"--reference-micro-batch-size {size} does not divide the {sequences} sequences that each data-parallel "
            f"rank reads per step (--global-batch-size {args.global_batch_size} over {args.data_parallel_size} ranks)"
        )
    stages = args.pipeline_model_parallel_size
    if args.virtual_pipeline_model_parallel_size and (sequences // size) % stages:
        raise UserError(
            f"--reference-micro-batch-size {size} gives {sequences // size} reference microbatches per step; the "
            f"interleaved schedule needs a multiple of the {stages} pipeline stages"
        )
