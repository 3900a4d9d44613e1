"""A plan's inputs: two models of OLMo-2-1B's shape without weights, and a corpus that is long on paper."""

import json
from pathlib import Path

from transformers import Olmo2Config

from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.launch.plan import Wishes, plan_run
from tests.conftest import write_corpus

# allenai/OLMo-2-0425-1B, config.json.
OLMO_1B = {
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
}
PAPER = (
    "--objective remit --seq-length 4096 --micro-batch-size 4 --reference-micro-batch-size 8 --global-batch-size 512 "
    "--train-iters 23842 --use-distributed-optimizer --bf16"
).split()


class Planned:
    """A folder with ``base``, ``rl`` and ``corpus``."""

    def __init__(self, folder):
        self.folder = folder

    def plan(self, *flags, gpus=32, base="base", rl="rl", corpus="corpus", **wishes):
        """The text of the paper's plan with more flags."""
        training = [*PAPER, "--data-path", str(self.folder / corpus), *map(str, flags)]
        return plan_run(self.folder / base, rl and self.folder / rl, gpus, training, Wishes(**wishes))

    def model(self, name, **changes):
        """A model folder whose config differs from OLMo-2-1B's."""
        config = Olmo2Config(**OLMO_1B | changes, architectures=["Olmo2ForCausalLM"])
        config.save_pretrained(self.folder / name)
        for file in self.folder.glob("base/tokenizer*"):
            (self.folder / name / file.name).write_bytes(file.read_bytes())
        return self.folder / name

    def corpus(self, name, tokens):
        """A corpus of which only the manifest has so many tokens."""
        write_corpus(self.folder / name, 515)
        manifest = {"tokenizer_fingerprint": folder_fingerprint(self.folder / "base"), "tokens": tokens}
        Path(f"{self.folder / name}.json").write_text(json.dumps(manifest))
        return str(self.folder / name)
