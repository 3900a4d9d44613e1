"""Where a reference NLL comes from: scored ahead of the step, read from a score store, or scored into one."""
