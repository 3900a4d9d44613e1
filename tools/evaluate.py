"""megatron-remit evaluate: the paper's evaluation of exported models, as a table in its layout."""

from megatron_remit.errors import cli
from megatron_remit.programs.evaluate import main

if __name__ == "__main__":
    cli(main)
