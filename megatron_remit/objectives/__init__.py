"""The objectives that ``--objective`` offers, by name.

One file for each: its flags, what the reference must give, what has to be known before a step, and the loss.
The mathematics is in ``objectives/``; here it meets Megatron's loop.
"""

from megatron.training import get_args

from megatron_remit.objectives.base import Objective
from megatron_remit.objectives.kd import Distillation
from megatron_remit.objectives.remit import Remit
from megatron_remit.objectives.rho1 import Rho1

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (Objective(), Remit(), Rho1(), Distillation())
}


def current_objective() -> Objective:
    """The objective that ``--objective`` names."""
    return OBJECTIVES[get_args().objective]
