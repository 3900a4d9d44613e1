"""In which precision the reference runs when the policy trains in fp8 or fp4.

In bf16, unless ``--reference-fp8`` asks otherwise: Megatron's default recipe scales a tensor by what earlier steps held
(delayed scaling), so the same rows would get other NLLs in another run, or later in the same one. A store could not say
what its scores mean. With ``--reference-fp8`` each tensor is scaled by its own values.
"""

import argparse

from megatron_remit.errors import UserError

# Megatron's arguments of a model in the run's 16-bit precision.
_UNQUANTIZED = {
    "fp8": None,
    "fp8_output_proj": False,
    "fp4": None,
    "te_precision_config_file": None,
    "moe_router_padding_for_quantization": False,
    "moe_router_padding_for_fp8": False,
}
# Recipes whose scales follow from the tensor itself; "delayed" is replaced by the first.
_WITHOUT_HISTORY = ("tensorwise", "blockwise", "mxfp8")


def check_precision(args: argparse.Namespace, has_reference: bool) -> None:
    """Refuse ``--reference-fp8`` where it cannot be done. Raises UserError."""
    if not args.reference_fp8:
        return
    if not has_reference:
        raise UserError(f"--reference-fp8: objective {args.objective} has no reference; leave it out")
    if args.fp8 is None:
        raise UserError("--reference-fp8 runs the reference in the policy's fp8, and there is none: give --fp8-format")
    if args.fp8_recipe not in (*_WITHOUT_HISTORY, "delayed"):
        raise UserError(
            f"--reference-fp8 with --fp8-recipe {args.fp8_recipe}: its scales are not known to be free of history; use "
            f"one of {', '.join(_WITHOUT_HISTORY)}"
        )


def fit_precision(args: argparse.Namespace, own: argparse.Namespace) -> None:
    """Set the reference's arguments ``own`` to the precision that the run's ``args`` ask for. Its weights are not
    quantized ahead in either case."""
    own.fp8_param_gather = own.fp4_param_gather = False
    if args.reference_fp8:
        own.fp8_recipe = _recipe(args)
    else:
        vars(own).update(_UNQUANTIZED)


def compute_dtype(args: argparse.Namespace) -> str:
    """What a store records: ``float32``, ``bfloat16`` or ``float16``; with ``--reference-fp8`` the recipe too."""
    wide = str(args.params_dtype).removeprefix("torch.")
    return f"{wide} with fp8 {args.fp8} {_recipe(args)}" if args.reference_fp8 else wide


def _recipe(args: argparse.Namespace) -> str:
    return _WITHOUT_HISTORY[0] if args.fp8_recipe == "delayed" else args.fp8_recipe
