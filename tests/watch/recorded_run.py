"""The training program, which also writes down each sample of the blend in the order in which it is read."""

import json
import os

from megatron.core.datasets.blended_dataset import BlendedDataset

from megatron_remit.programs import train


def main():
    sample_of = BlendedDataset.__getitem__

    def recorded(self, index):
        sample = sample_of(self, index)
        with open(os.environ["RECORD"], "a") as file:
            row = {name: sample[name].tolist() for name in ("tokens", "labels", "loss_mask")}
            file.write(json.dumps(row) + "\n")
        return sample

    BlendedDataset.__getitem__ = recorded
    train.main()


if __name__ == "__main__":
    main()
