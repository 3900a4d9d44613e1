"""ReMiT (RL-guided mid-training) on Megatron-Core."""

import warnings as _warnings

# What Megatron says while it is imported where Transformer Engine and apex are not installed. This program chooses its
# layers by itself, and an error of a user's input must not stand below ten lines of warnings.
for _message in (
    "Apex is not installed",
    "Transformer Engine and Apex are not installed",
    "Only transformer-engine>=1.7.0 supports MoE experts",
    "torch.distributed is disabled, unavailable or uninitialized",
):
    _warnings.filterwarnings("ignore", message=_message)
