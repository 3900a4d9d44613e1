"""Check the settings of a run and print its length and its memory per GPU, without a GPU."""

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line and print the plan. Raises UserError as ``plan_run``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-hf", type=Path, required=True, help="Hugging Face folder of the model to train")
    parser.add_argument("--reference-hf", type=Path, help="Hugging Face folder of the RL model")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the run, over all nodes")
    parser.add_argument("training", nargs="+", metavar="-- FLAG", help="flags of the training program")
    options = parser.parse_args()
    # Imported late: --help need not wait for torch and Megatron.
    from megatron_remit.launch.plan import plan_run

    print(plan_run(options.base_hf, options.reference_hf, options.gpus, options.training))
