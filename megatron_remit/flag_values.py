"""What a number or a list of numbers of Megatron's command line may be, before Megatron computes with it.

Megatron's parser takes any number. What is out of range then divides by zero in a schedule, trains nothing, builds
layers for hours, or ends in an assertion that names no flag. This is the one table of ranges.
"""

import argparse
import math

from megatron_remit.errors import UserError, check_workers
from megatron_remit.megatron_flags import numbers, spelt

# Below zero they have a meaning; of all others no number below zero has one.
_SIGNED = ("async_ckpt_cpu_priority", "null_tokenizer_eod_id", "null_tokenizer_pad_id", "local_rank", "lr_warmup_init")
# Zero has no meaning either.
_ABOVE_ZERO = (
    *("seq_length", "max_position_embeddings", "micro_batch_size", "global_batch_size", "train_iters", "train_samples"),
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "kv_channels"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "num_experts"),
    *("expert_model_parallel_size", "expert_tensor_parallel_size", "num_layers_per_virtual_pipeline_stage"),
    *("num_virtual_stages_per_pipeline_rank", "make_vocab_size_divisible_by", "seed", "adam_eps", "loss_scale"),
    *("lr_decay_iters", "lr_decay_samples", "save_interval", "log_interval", "tensorboard_log_interval"),
    *("eval_interval", "exit_interval", "save_retain_interval", "recompute_num_layers", "eval_micro_batch_size"),
    *("eval_global_batch_size", "distributed_timeout_minutes", "num_distributed_optimizer_instances"),
)
_BELOW_ONE = ("adam_beta1", "adam_beta2", "sgd_momentum", "lr_warmup_fraction", "hidden_dropout", "attention_dropout")
_STATED = {"seq_length": "the tokens of a row", "micro_batch_size": "the rows of a microbatch"}
# Far above what there is, and far below what hangs or overflows.
_AT_MOST = {
    "num_layers": 10_000,
    "hidden_size": 1 << 20,
    "ffn_hidden_size": 1 << 23,
    "num_attention_heads": 1 << 16,
    "seq_length": 1 << 30,
    "max_position_embeddings": 1 << 30,
    "train_iters": 1 << 31,
    "train_samples": 1 << 40,
    "global_batch_size": 1 << 30,
    "seed": (1 << 32) - 1,
    "row_seed": (1 << 32) - 1,
}


def check_values(args: argparse.Namespace) -> None:
    """Refuse numbers that no run can have. ``args`` may be those before Megatron's validation.

    Raises:
        UserError: names the flag, its value and the range.
    """
    for name, default in {**numbers(), "row_seed": None}.items():
        value = getattr(args, name, None)
        if value != default:
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, int | float):
                    _check_number(name, one)
    _check_together(args)
    _check_split(args)
    _check_blends(args)


def check_stated(args: argparse.Namespace) -> None:
    """Refuse a run that leaves out a size that has no default. What a checkpoint gives is in ``args`` by then.

    Raises:
        UserError: names the flag.
    """
    for name, what in _STATED.items():
        if getattr(args, name) is None:
            raise UserError(f"{spelt(name)} is not set; give {what}")
    if args.train_iters is None and args.train_samples is None and not args.skip_train:
        raise UserError("--train-iters is not set; give the steps of the run (or its rows with --train-samples)")


def _check_number(name: str, value: float) -> None:
    flag = f"{spelt(name)} {value}"
    if not math.isfinite(value):
        raise UserError(f"{flag}: expected a finite number")
    if name in _ABOVE_ZERO and value <= 0:
        raise UserError(f"{flag}: expected a number above 0")
    if value < 0 and name not in _SIGNED:
        raise UserError(f"{flag}: expected 0 or more")
    if name in _BELOW_ONE and value >= 1:
        raise UserError(f"{flag}: expected a number below 1")
    if name in ("num_workers", "num_dataset_builder_threads"):
        check_workers(spelt(name), int(value))
    most = _AT_MOST.get(name, 2**63 - 1 if isinstance(value, int) else math.inf)
    if value > most:
        raise UserError(f"{flag}: expected at most {most}")


def _check_together(args: argparse.Namespace) -> None:
    if args.fp16 and args.bf16:
        raise UserError("--fp16 with --bf16: a run has one of them; leave the other out")
    steps = args.lr_decay_iters or args.train_iters
    if steps is not None and args.lr_warmup_iters and args.lr_warmup_iters >= steps:
        raise UserError(
            f"--lr-warmup-iters {args.lr_warmup_iters} is not shorter than the {steps} steps over which the rate falls "
            "(--lr-decay-iters, else --train-iters); shorten it"
        )
    if args.save_interval is not None and args.save is None:
        raise UserError(f"--save-interval {args.save_interval} without --save: nothing would be saved; give --save DIR")
    if args.lr_decay_style == "WSD" and args.lr_wsd_decay_iters is None and args.lr_wsd_decay_samples is None:
        raise UserError("--lr-decay-style WSD needs --lr-wsd-decay-iters: the steps at its end in which the rate falls")
    if args.recompute_granularity == "full" and args.recompute_method is None:
        raise UserError(
            "--recompute-granularity full needs --recompute-method; give 'uniform' or 'block', and "
            "--recompute-num-layers"
        )


def _check_split(args: argparse.Namespace) -> None:
    if args.split is None:
        return
    parts = args.split.split(",")
    try:
        shares = [float(part) for part in parts]
        right = 1 <= len(shares) <= 3 and all(math.isfinite(share) and share >= 0 for share in shares)
    except ValueError:
        right = False
    if not right or sum(shares) <= 0:
        raise UserError(
            f"--split {args.split}: expected up to three shares of 0 or more, such as 99,1,0 (training, validation, "
            "test), not all 0"
        )
    if shares[0] == 0 and not args.skip_train:
        raise UserError(f"--split {args.split} leaves nothing to train on; give the first share a number above 0")


def _check_blends(args: argparse.Namespace) -> None:
    """Weights before the prefixes, as in ``0.3 A 0.7 B``."""
    for name in ("data_path", "train_data_path", "valid_data_path", "test_data_path"):
        words = getattr(args, name, None) or []
        weights = [_number(word) for word in words[::2]]
        if len(words) < 2 or all(weight is None for weight in weights):
            continue
        found = f"{spelt(name)} {' '.join(words)}"
        if len(words) % 2 or any(weight is None for weight in weights):
            raise UserError(f"{found}: expected a weight before each prefix, or none at all")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights if weight is not None):
            raise UserError(f"{found}: the weights are to be numbers of 0 or more")
        if not sum(weight for weight in weights if weight is not None):
            raise UserError(f"{found}: the weights are all 0; give one of them a number above 0")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
