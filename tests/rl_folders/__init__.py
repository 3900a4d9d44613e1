"""An RL model's folder as training tools leave it, by name: what an import reads, what it refuses in which words."""
