"""What the arms of the comparison are called, and how they are drawn."""

from typing import NamedTuple


class Arm(NamedTuple):
    """A method, a control or a model of the comparison. Colours are Okabe and Ito's (safe for colour-blind eyes)."""

    name: str
    colour: str = "#777777"
    dash: str = "-"
    marker: str = "o"


ARMS = {
    "ntp": Arm("NTP", "#222222", "--", "s"),
    "ntp_equal_compute": Arm("NTP on 4/3 of the tokens", "#777777", ":", "s"),
    "remit": Arm("ReMiT", "#D55E00", "-", "o"),
    "remit_no_clip": Arm("ReMiT, no clip", "#E69F00", "-.", "D"),
    "remit_eps01": Arm("ReMiT, ε = 0.1", "#E69F00", ":", "<"),
    "remit_eps04": Arm("ReMiT, ε = 0.4", "#E69F00", "--", ">"),
    "remit_sft": Arm("ReMiT, SFT reference", "#009E73", "-.", "^"),
    "remit_sft_errors": Arm("ReMiT, SFT on the corpus' errors", "#009E73", ":", "v"),
    "remit_rl_errors": Arm("ReMiT, RL behind SFT on errors", "#009E73", "-", "<"),
    "remit_early": Arm("ReMiT, 10 % of RL", "#CC79A7", "--", "P"),
    "remit_before_rl": Arm("control: reference before RL", "#0072B2", "-", "v"),
    "remit_permuted": Arm("control: permuted weights", "#56B4E9", ":", "X"),
    "rho1": Arm("RHO-1", "#009E73", "--", "^"),
    "kd": Arm("KD", "#CC79A7", "-.", "D"),
    "miniplm": Arm("MiniPLM", "#0072B2", "--", "<"),
    "contrast": Arm("contrast", "#56B4E9", "-", "P"),
    "prift": Arm("PriFT", "#56B4E9", "--", "X"),
    "tokenclean": Arm("token cleaning", "#009E73", "-", ">"),
    "eslm": Arm("ESLM", "#777777", "-.", "D"),
    "second_ntp": Arm("second round: ReMiT, RL model of NTP", "#222222", "--", "s"),
    "second_remit": Arm("second round: ReMiT, RL model of ReMiT", "#D55E00", "-", "D"),
}
MODELS = {
    "base": Arm("base"),
    "mid": Arm("before SFT and RL"),
    "sft": Arm("SFT"),
    "sft_errors": Arm("SFT on the corpus' errors"),
    "rl_errors": Arm("RL behind SFT on errors"),
    "rl_early": Arm("RL after 10 % of its steps"),
    "rl_reference": Arm("RL reference"),
}
CONTROLS = ("remit_before_rl", "remit_permuted")
# The arms whose lines are drawn; all of them are in the tables.
LINES = ("ntp", "remit", "remit_no_clip", *CONTROLS, "rho1", "kd")
STAGES = {"mid": "after mid-training", "sft": "after SFT", "grpo": "after GRPO"}


def named(arm: str) -> Arm:
    """The arm of that name; one that is not in the table is called as it is."""
    return (ARMS | MODELS).get(arm, Arm(arm))


def in_order(arms: set[str]) -> list[str]:
    """Arms in the order of the table, unknown ones last."""
    known = [*ARMS, *MODELS]
    return sorted(arms, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))
