"""megatron-remit manifest: check a corpus that another tool wrote, and write its manifest."""

from megatron_remit.errors import cli
from megatron_remit.programs.commands import manifest_command

if __name__ == "__main__":
    cli(manifest_command)
