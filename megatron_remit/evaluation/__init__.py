"""The paper's evaluation with lm-evaluation-harness: from exported model folders to a table in the paper's layout.

The order of reading: suites.py (suites/*.yaml: which tasks, columns and metrics) -> tasks.py (lm-eval's tasks, with
local data and with execution.py in place of the hub's executor) -> column.py (one column of one model) -> results.py
(a file per column: what is there is not run again) -> table.py -> run.py (all of it).

lm-eval is in the extra ``flywheel``; only tasks.py, column.py and execution.py's callers need it.
"""
