"""A job on a cluster: its settings, its way from import to export, the launcher on each node, the plan of a run."""
