"""Whether a checkpoint may be read: what its pickles name, and whether its bytes are those that were written."""
