"""The objectives that ``--objective`` offers, and the one of this run.

``--objective package.module:Class`` takes one from outside this package (docs/new-objective.md).
"""

import functools
import importlib

from megatron.training import get_args, get_tokenizer

from megatron_remit.objectives.base import Objective
from megatron_remit.objectives.contrast import Contrast
from megatron_remit.objectives.eslm import Eslm
from megatron_remit.objectives.kd import Distillation
from megatron_remit.objectives.ntp import NextToken
from megatron_remit.objectives.prift import Prift
from megatron_remit.objectives.remit import Remit
from megatron_remit.objectives.rho1 import Rho1
from megatron_remit.objectives.tokenclean import TokenCleaning

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (NextToken, Remit, Rho1, Distillation, Contrast, Prift, TokenCleaning, Eslm)
}


def objective_class(name: str) -> type[Objective]:
    """The class that ``--objective`` names: one of ``OBJECTIVES``, or ``package.module:Class``.

    Raises:
        ValueError: there is none; the message says what was looked for.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(f"invalid choice: {name!r} (choose from {', '.join(OBJECTIVES)}, or package.module:Class)")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ValueError(f"{name!r}: the module {module_name} cannot be imported ({error})") from None
    if found is None:
        raise ValueError(f"{name!r}: the module {module_name} has no {class_name}")
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(f"{name!r} is not a class derived from megatron_remit.objectives.base.Objective")
    return found


@functools.cache
def current_objective() -> Objective:
    """The run's objective, made at the first call from Megatron's global arguments."""
    args = get_args()
    return objective_class(args.objective)(args, get_tokenizer())


@functools.cache
def evaluation_objective() -> Objective:
    """Next-token prediction, whatever the run trains with: validation losses compare between objectives."""
    return NextToken(get_args(), get_tokenizer())
