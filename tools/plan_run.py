"""megatron-remit plan: check the settings of a run, print its length and its memory per GPU."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import plan_command

if __name__ == "__main__":
    cli(plan_command)
