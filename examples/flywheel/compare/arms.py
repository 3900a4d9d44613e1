"""The arms of the comparison: what each trains with, as flags of the training program."""

from dataclasses import dataclass

RL, SFT, EARLY, BEFORE_RL = "rl_reference", "sft", "rl_early", "base"
SFT_ERRORS, RL_ERRORS = "sft_errors", "rl_errors"
"""The models that serve as a reference, by the names of their folders."""
MORE_REFERENCES = (SFT_ERRORS, RL_ERRORS, EARLY)
"""Those that one arm each needs; they are made when such an arm is asked for."""


@dataclass(frozen=True)
class Arm:
    """One way to mid-train. What it is called is in ``results/arms.py``."""

    objective: str = "ntp"
    reference: str | None = None
    flags: tuple[str, ...] = ()
    tokens: float = 1.0
    """Times the tokens of the other arms."""
    corpus: str = "mid"
    base_of_reference: bool = False
    """Whether the model before RL is needed as well."""


ARMS = {
    "ntp": Arm(),
    "remit": Arm("remit", RL),
    "remit_before_rl": Arm("remit", BEFORE_RL),
    "remit_permuted": Arm("remit", RL, ("--remit-control", "permute")),
    "remit_no_clip": Arm("remit", RL, ("--remit-epsilon", "none")),
    "rho1": Arm("rho1", RL, ("--rho1-keep-ratio", "0.8")),
    "kd": Arm("kd", RL),
    # A ReMiT step costs 8/6 of an NTP step, so this one has cost the same.
    "ntp_equal_compute": Arm(tokens=4 / 3),
    "remit_sft": Arm("remit", SFT),
    "remit_sft_errors": Arm("remit", SFT_ERRORS),
    "remit_rl_errors": Arm("remit", RL_ERRORS),
    "remit_early": Arm("remit", EARLY),
    "remit_eps01": Arm("remit", RL, ("--remit-epsilon", "0.1")),
    "remit_eps04": Arm("remit", RL, ("--remit-epsilon", "0.4")),
    "contrast": Arm("contrast", RL, base_of_reference=True),
    "prift": Arm("prift", RL),
    "tokenclean": Arm("tokenclean", RL, base_of_reference=True),
    "eslm": Arm("eslm"),
    "miniplm": Arm(corpus="selected"),
}
FIRST = ("ntp", "remit", "remit_before_rl", "remit_permuted", "remit_no_clip", "rho1", "kd")
"""Run for every base and order before the others, so that an interrupted comparison is whole for these."""
