"""The programs behind the console commands and tools/: each puts parts of the package together and holds no logic."""

from megatron_remit.programs import te_import

# Before any of the programs imports Megatron, which imports Transformer Engine.
te_import.watch()
