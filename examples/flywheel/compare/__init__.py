"""The comparison of methods on the tiny world: which runs there are, how each is made, and in which order."""
