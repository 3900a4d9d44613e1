"""Every change to Megatron 0.19.2 is made here, each with its reason."""

import argparse
import functools
import importlib.util
import sys
import warnings
from typing import Any

import torch
from megatron.core.datasets import utils as dataset_utils
from megatron.core.optimizer import distrib_optimizer, optimizer
from megatron.core.rerun_state_machine import EXIT_CODE_FAILED_ON_RESULT_VALIDATION, RerunStateMachine
from megatron.training import arguments, checkpointing, get_args, global_vars, training
from megatron.training.vocab_utils import calculate_padded_vocab_size
from torch.nn import Module

from megatron_remit import cpu, heartbeat, retention, step_metrics
from megatron_remit.errors import UserError
from megatron_remit.flag_values import check_stated, check_values
from megatron_remit.layout import check_divides, check_step
from megatron_remit.megatron_flags import CHOSEN_ANEW, check_megatron_flags, check_not_replaced, given
from megatron_remit.model_arguments import take_left_out
from megatron_remit.one_line import begins, in_one_line, one_line
from megatron_remit.scoring.ahead import Base, ScoreAhead
from megatron_remit.trust import loading, pickles, saving
from megatron_remit.watch.arguments import check_watch
from megatron_remit.watch.output import keep_run_id

_applied = False
# What a parameter group has of the learning-rate schedule.
_RATES = ("max_lr", "min_lr", "start_wd", "end_wd")


def apply() -> None:
    """Apply the patches that every run needs. Calling it again does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    if importlib.util.find_spec("megatron.core.datasets.helpers_cpp"):
        # The wheel ships the compiled helper but not the Makefile that Megatron runs at start-up.
        dataset_utils.compile_helpers = lambda: None
    if not cpu.has_cuda():
        training.initialize_megatron = functools.partial(training.initialize_megatron, allow_no_cuda=True)
    arguments.add_megatron_arguments = _with_readable_help(arguments.add_megatron_arguments)
    arguments.parse_args = _parsed(arguments.parse_args)
    checkpointing.load_args_from_checkpoint = _load_args(checkpointing.load_args_from_checkpoint)
    arguments.validate_args = _validate(arguments.validate_args)
    # What is asserted about a user's values after that; programs/train.py has the rest of it until the first step.
    arguments.set_global_variables = one_line(arguments.set_global_variables)
    training.initialize_megatron = one_line(training.initialize_megatron, args_of=lambda *_: get_args())
    # These cannot be opened, for whatever reason their libraries have.
    for name, about in (("build_tokenizer", "tokenizer_model"), ("_set_tensorboard_writer", "tensorboard_dir")):
        setattr(global_vars, name, one_line(getattr(global_vars, name), about, kinds=(Exception,)))
    RerunStateMachine.should_checkpoint_and_exit = _end_without_folder(RerunStateMachine.should_checkpoint_and_exit)
    pickles.guard_torch()
    save = heartbeat.before(heartbeat.SAVING, saving.with_digests(checkpointing.save_checkpoint))
    training.save_checkpoint = checkpointing.save_checkpoint = save
    checkpointing.schedule_async_save = saving.scheduled_with_digests(checkpointing.schedule_async_save)
    delete = retention.keeping_more(checkpointing._async_delete_checkpoint_impl, get_args)
    checkpointing._async_delete_checkpoint_impl = delete
    measured = step_metrics.with_step_metrics(training.train_step)
    training.train_step = begins(heartbeat.after_step(measured, lambda: get_args().curr_iteration + 1))
    training.dummy_train_step = begins(training.dummy_train_step)
    evaluate = heartbeat.before(heartbeat.VALIDATING, training.evaluate_and_print_results)
    training.evaluate_and_print_results = begins(evaluate)
    training.training_log = step_metrics.with_watched_figures(step_metrics.with_negative_means(training.training_log))
    _resume_with_other_rates()
    # In fp32 the distributed optimizer's parameters are views of the model's own, which may be written without autograd
    # only; Megatron loads them with it, and fails.
    sharded = distrib_optimizer.DistributedOptimizer
    sharded._set_main_param_and_optimizer_states = torch.no_grad()(sharded._set_main_param_and_optimizer_states)
    if not distrib_optimizer.HAVE_APEX_OR_TE:
        _resume_torch_adam(distrib_optimizer.DistributedOptimizer)


class _Formatter(argparse.HelpFormatter):
    """A help text that is no valid %-format is shown as it is written."""

    def _expand_help(self, action: argparse.Action) -> str:
        try:
            return super()._expand_help(action)
        except (ValueError, TypeError, KeyError):
            return action.help or ""


def _with_readable_help(original: Any) -> Any:
    """Let ``--help`` be printed: one of Megatron's texts has a bare %, at which argparse fails (Python 3.14 already
    when the flag is added)."""

    @functools.wraps(original)
    def call(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.formatter_class = _Formatter
        # An error would be the last line below a list of 800 flags.
        parser.usage = "%(prog)s [-h] [--help-remit] FLAGS"
        return original(parser)

    return call


def score_ahead_with(reference: list[Module], base: Base | None) -> None:
    """From now on ``reference``, and ``base`` if there is one, score each of Megatron's training steps before it runs.

    ``train`` asks ``get_forward_backward_func`` for its schedule once, and Megatron itself wraps the result there for
    CUDA graphs.
    """
    original = training.get_forward_backward_func
    # Megatron takes a bucket that is gathered already for one that is gathered out of order (scoring/ahead.py).
    warnings.filterwarnings("ignore", message="The next bucket's parameter all-gather operation has already been")

    @functools.wraps(original)
    def get_forward_backward_func(*args: Any, **kwargs: Any) -> ScoreAhead:
        return ScoreAhead(reference, base, original(*args, **kwargs))

    training.get_forward_backward_func = get_forward_backward_func


def once_data_stands(then: Any) -> None:
    """From now on ``then`` is called when Megatron has built a run's data iterators, with virtual stages for each."""
    original = training.build_train_valid_test_data_iterators

    @functools.wraps(original)
    def call(*rest: Any, **named: Any) -> Any:
        built = original(*rest, **named)
        then()
        return built

    training.build_train_valid_test_data_iterators = call


def _parsed(original: Any) -> Any:
    """What this program refuses of Megatron's flags comes before a checkpoint is read, or computed with."""

    @functools.wraps(original)
    def call(*rest: Any, **named: Any) -> Any:
        args = original(*rest, **named)
        if not hasattr(args, "trust_checkpoint"):
            return args  # Megatron reads its own flags once more in places
        check_megatron_flags(args)
        check_values(args)
        if args.use_checkpoint_args and args.load is None and args.pretrained_checkpoint is None:
            raise UserError("--use-checkpoint-args without --load: give the checkpoint whose model the run takes")
        return args

    return call


def _load_args(original: Any) -> Any:
    """The checkpoint is checked before anything of it is read. ``--use-checkpoint-args`` also takes the model arguments
    that Megatron leaves out, and the logical vocabulary.

    The vocabulary is padded anew, because the padding of the saved run belongs to its tensor-parallel size. A given
    ``--tokenizer-model`` stays: Megatron would replace it by the saved run's path, which is gone once a folder was
    moved.
    """

    @functools.wraps(original)
    def call(args: Any, *rest: Any, **kwargs: Any) -> Any:
        padded_rows, stated = args.padded_vocab_size, given()
        if args.tokenizer_model is not None:
            args.use_tokenizer_model_from_checkpoint_args = False
        with in_one_line(args):
            loading.check_loaded(args)
            result = original(args, *rest, **kwargs)
        if not isinstance(result, tuple):
            return result
        saved = result[1]
        take_left_out(args, saved)
        # Dropout and the kernels of the experts are the run's choice; Megatron takes them from the run that saved.
        vars(args).update({name: stated[name] for name in CHOSEN_ANEW if name in stated})
        if not hasattr(args, "reference_flag"):  # the flags describe the policy
            check_not_replaced(args, stated, saved)
        if args.multi_latent_attention and args.rope_type == "rope":
            # Megatron fuses RoPE into this attention for YaRN only, refuses it here, and has it on by default.
            args.apply_rope_fusion = False
        args.remit_vocab_size = getattr(saved, "remit_vocab_size", None)
        if padded_rows is None and args.remit_vocab_size is not None:
            args.padded_vocab_size = calculate_padded_vocab_size(
                args.remit_vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size
            )
        return result

    return call


def _validate(original: Any) -> Any:
    """Megatron's validation says in one line what it refuses. What this program refuses comes first, and what does not
    divide over the ranks."""

    @functools.wraps(original)
    def call(args: Any, *rest: Any, **kwargs: Any) -> Any:
        check_megatron_flags(args)
        check_values(args)
        check_stated(args)
        if not args.decrease_batch_size_if_needed:
            check_step(args, "--micro-batch-size", args.micro_batch_size)
        if not hasattr(args, "reference_flag"):
            # Megatron starts W&B on the last rank right after the validation.
            check_watch(args)
            keep_run_id(args)
        if args.num_layers is not None and args.yaml_cfg is None:
            check_divides(args, f"--load {args.load}" if args.use_checkpoint_args else "the model")
        with in_one_line(args):
            return original(args, *rest, **kwargs)

    return call


def _end_without_folder(original: Any) -> Any:
    """A loss that is NaN or infinite ends a run without ``--save`` too: Megatron would write a checkpoint to None, and
    the TypeError of that would be the last that is seen."""

    @functools.wraps(original)
    def call(self: Any) -> tuple[bool, bool, int]:
        checkpoint, end, code = original(self)
        if not checkpoint or get_args().save is not None:
            return checkpoint, end, code
        step = self.current_iteration + 1
        print(
            f"error: step {step}: the loss or a gradient is NaN or infinite (above: 'Unexpected result'), and so again "
            "when the step was repeated; there is no --save, so there is no checkpoint to look into",
            file=sys.stderr,
            flush=True,
        )
        return False, True, EXIT_CODE_FAILED_ON_RESULT_VALIDATION

    return call


def _resume_with_other_rates() -> None:
    """Let ``--override-opt_param-scheduler`` change the learning rate of a resumed run.

    Megatron finds the saved state of a parameter group by values that include its highest and lowest rate, so that
    another ``--lr`` finds none, whatever the flag says.
    """
    plain, sharded = optimizer.MegatronOptimizer, distrib_optimizer.DistributedOptimizer
    reorder, load_state_dict = plain._filter_and_reorder_param_groups, sharded.load_state_dict

    @functools.wraps(reorder)
    def reorder_with_rates(current: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _give_rates(current, saved)
        return reorder(current, saved)

    @functools.wraps(load_state_dict)
    def load(self: Any, state: Any) -> None:
        if "optimizer" in state:
            _give_rates(self.optimizer.param_groups, state["optimizer"].get("param_groups", []))
        load_state_dict(self, state)

    plain._filter_and_reorder_param_groups = staticmethod(reorder_with_rates)
    sharded.load_state_dict = load


def _give_rates(current: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Each saved group gets the rates of the present group that it is equal to otherwise, if there is but one."""
    if not get_args().override_opt_param_scheduler:
        return

    def rest(group: dict[str, Any]) -> tuple[Any, ...]:
        names = [name for name in optimizer.param_group_identifier_keys if name not in _RATES]
        return tuple(group.get(name) for name in names)

    for group in saved:
        alike = [one for one in current if rest(one) == rest(group)]
        if len(alike) == 1:
            group.update({name: alike[0][name] for name in _RATES if name in alike[0]})


def _resume_torch_adam(optimizer_class: Any) -> None:
    """Let the distributed optimizer load a checkpoint when its Adam is torch's (no Transformer Engine, no apex).

    torch counts the steps of each parameter. Megatron asks for that count before there is any state, which fails. At
    the end of loading it overwrites the restored count with the earlier one, 0, so that Adam's bias correction would
    start anew.
    """
    state_dict, load_state_dict = optimizer_class.state_dict, optimizer_class.load_state_dict

    @functools.wraps(state_dict)
    def state(self: Any) -> Any:
        inner = self.optimizer
        if inner.state:
            return state_dict(self)
        for group in inner.param_groups:
            inner.state.update({parameter: {"step": torch.tensor(0.0)} for parameter in group["params"]})
        try:
            return state_dict(self)
        finally:
            inner.state.clear()

    @functools.wraps(load_state_dict)
    def load(self: Any, saved: Any) -> None:
        load_state_dict(self, saved)
        steps = {group["step"] for group in saved.get("optimizer", {}).get("param_groups", ()) if "step" in group}
        for entry in self.optimizer.state.values():
            if "step" in entry and steps:
                entry["step"] = torch.tensor(float(max(steps)))

    optimizer_class.state_dict, optimizer_class.load_state_dict = state, load
