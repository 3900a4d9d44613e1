"""What a job on a Slurm cluster needs beside the training program: the launcher on each node, the plan of a run."""
