"""The training program with several references in turn: each step is taken once with each of them.

Run under torchrun by test_rows.py. REFERENCES lists their checkpoints; PLAN is one of tests/planned_objectives.py. With
--lr 0 the steps leave the policy as it is, so what a step reports must not depend on which reference scored it, if they
are the same model. Rank 0 writes what each step reported with each reference to FIGURES, as JSON.
"""

import copy
import json
import os
from pathlib import Path

from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.training import get_args, training

from megatron_remit import patches
from megatron_remit.programs import train
from megatron_remit.reference.checkpoint import reference_arguments
from megatron_remit.reference.model import build_reference
from tests import planned_objectives

TIMES = ("reference share", "tokens per second")
REFERENCES = os.environ.get("REFERENCES", "").split(":")


def main():
    patches.apply()
    held, others, figures = [], [], []

    def build_all(own):
        held[:] = build_reference(own)
        args = copy.copy(get_args())
        for folder in REFERENCES:
            args.reference_load = Path(folder)
            others.append(build_reference(reference_arguments(args)))
        return held

    train.build_reference = build_all
    train_step = training.train_step

    def repeated(forward_step, data_iterator, *rest, **kwargs):
        samples = [next(data_iterator) for _ in range(get_num_microbatches())] if data_iterator is not None else None
        step = {}
        for folder, chunks in zip(REFERENCES, others, strict=True):
            held[:] = chunks
            iterator = None if samples is None else RerunDataIterator(iter([dict(sample) for sample in samples]))
            result = train_step(forward_step, iterator, *rest, **kwargs)
            losses, norm = result[0], result[5]
            step[folder] = {name: float(value) for name, value in losses.items() if name not in TIMES}
            step[folder]["grad-norm"] = float(norm)
        figures.append(step)
        return result

    training.train_step = repeated
    planned_objectives.main()
    if os.environ["RANK"] == "0":
        Path(os.environ["FIGURES"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
