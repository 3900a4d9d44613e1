"""ReMiT (RL-guided mid-training) on Megatron-Core."""
