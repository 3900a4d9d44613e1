"""The training program with another objective at each step: one start serves all objectives.

Run under torchrun by tests/test_objectives_in_training.py. Only values of our flags change between steps; the loop,
the reference and the policy are the program's.
"""

import os

from megatron.training import get_args, training

from megatron_remit import patches
from megatron_remit.objectives.registry import current_objective
from megatron_remit.programs import train

RHO1 = {"objective": "rho1", "rho1_keep_ratio": 0.6}
ONE_REFERENCE = [
    RHO1 | {"rho1_scope": "sequence"},
    RHO1 | {"rho1_scope": "global-batch"},
    {"objective": "kd", "kd_alpha": 0.7, "kd_temperature": 2.0},
    RHO1 | {"rho1_scope": "microbatch"},
    {"objective": "remit", "remit_control": "permute"},
]
PLANS = {
    "one reference": ONE_REFERENCE,
    "all": [
        {"objective": "prift"},
        {"objective": "eslm", "eslm_alpha": 0.4, "eslm_scope": "microbatch"},
        {"objective": "eslm", "eslm_alpha": 0.4, "eslm_scope": "global-batch"},
        {"objective": "tokenclean", "tokenclean_keep_ratio": 0.6, "tokenclean_threshold": None},
        {"objective": "tokenclean", "tokenclean_threshold": 0.1},
        {"objective": "contrast"},
        *ONE_REFERENCE,
    ],
    "like ntp": [
        {"objective": "rho1", "rho1_keep_ratio": 1.0, "rho1_scope": "sequence"},
        {"objective": "rho1", "rho1_keep_ratio": 1.0, "rho1_scope": "microbatch"},
        {"objective": "rho1", "rho1_keep_ratio": 1.0, "rho1_scope": "global-batch"},
        {"objective": "kd", "kd_alpha": 0.0, "kd_temperature": 3.0},
        {"objective": "eslm", "eslm_alpha": 0.0, "eslm_scope": "sequence"},
        {"objective": "eslm", "eslm_alpha": 0.0, "eslm_scope": "global-batch"},
        {"objective": "tokenclean", "tokenclean_keep_ratio": 1.0, "tokenclean_threshold": None},
        {"objective": "tokenclean", "tokenclean_threshold": -1e9},
        {"objective": "contrast", "remit_epsilon": 0.0},
    ],
    "from stores": [
        {"objective": "contrast"},
        {"objective": "prift"},
        {"objective": "tokenclean", "tokenclean_keep_ratio": 0.6},
    ],
    "ntp": [{"objective": "ntp"}],
    "experts": [
        {"objective": "remit", "remit_control": "none"},
        RHO1 | {"rho1_scope": "global-batch"},
        {"objective": "kd", "kd_alpha": 0.7, "kd_temperature": 2.0},
    ],
}


def main():
    # Before ours, so that the plan is the outermost.
    patches.apply()
    plan = PLANS[os.environ["PLAN"]]
    train_step = training.train_step

    def planned(*args, **kwargs):
        options = get_args()
        vars(options).update(plan[options.curr_iteration % len(plan)])
        current_objective.cache_clear()
        return train_step(*args, **kwargs)

    training.train_step = planned
    train.main()


if __name__ == "__main__":
    main()
