"""What ReMiT's weights and RHO-1's choice do to each kind of token of the tiny corpus, for two policies.

The policies are the base, where mid-training starts, and the model of NTP mid-training, near its end. A JSON list:
policy, kind, tokens, NLL (nats), delta (nats), mean weight, share that RHO-1 chooses (kept).

Shape suffixes: B rows of the corpus, S positions.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from evaluate import write_json
from torch import Tensor

from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.models import load_model, load_tokenizer, start_token, tokenize
from megatron_remit.analysis.score import token_logprobs
from megatron_remit.objectives.math.selection import select_in_microbatch
from megatron_remit.objectives.math.weights import remit_weights

POLICIES = ("base", "mid")
ROWS = 480
# Those of the arms.
KEEP_RATIO, EPSILON = 0.8, 0.2


def kinds(text: str, pieces: list[str]) -> Iterator[str]:
    """The kind of each token of a document that make_data.py wrote."""
    solution = text.find("\nA:")
    if not re.search(r"\d", text):
        kind = "filler"
    else:
        kind = "bare equations" if solution < 0 else "question"
    place = 0
    for piece in pieces:
        before = text[:place]
        if kind != "question":
            yield kind
        elif place < solution:
            yield "question: numbers" if piece.strip().isdigit() else "question: words"
        elif re.search(r"=\d*$", before):
            yield "solution: results"
        elif re.search(r"#### ?\d*$", before):
            yield "solution: answer"
        else:
            yield "solution: operands" if piece.strip().isdigit() else "solution: signs"
        place += len(piece)


def read_rows(path: Path, folder: Path, count: int, length: int) -> tuple[list[list[int]], list[list[str]], int]:
    """``count`` rows of ``length`` tokens, documents one after another as in training, their kinds, the start token."""
    tokenizer = load_tokenizer(folder)
    end = start_token(tokenizer, folder)
    ids: list[int] = []
    kind: list[str] = []
    with path.open() as file:
        while len(ids) < count * length:
            documents = [json.loads(line) for line in itertools.islice(file, 256)]
            if not documents:
                break
            for row, tokens, pieces in zip(documents, *tokenize(tokenizer, documents), strict=True):
                ids += [*tokens, end]
                kind += [*kinds(row["text"], pieces), "end of document"]
    starts = range(0, min(len(ids) // length, count) * length, length)
    return [ids[at : at + length] for at in starts], [kind[at : at + length] for at in starts], end


def summarise(
    policy: str, policy_BS: Tensor, reference_BS: Tensor, kind: list[list[str]], ratio: float, epsilon: float
) -> list[dict[str, object]]:
    """Means over the tokens of each kind; the NLLs are nats."""
    ones_BS = torch.ones_like(policy_BS)
    weights = remit_weights(policy_BS, reference_BS, ones_BS, epsilon)
    kept_BS = select_in_microbatch(weights.delta_BS, ones_BS, ratio, "sequence")
    flat = [name for row in kind for name in row]
    found = []
    for name in sorted(set(flat)):
        here = torch.tensor([one == name for one in flat]).view_as(kept_BS)
        found.append(
            {
                "policy": policy,
                "kind": name,
                "tokens": int(here.sum()),
                "nll": policy_BS[here].mean().item(),
                "delta": weights.delta_BS[here].mean().item(),
                "weight": weights.weight_BS[here].mean().item(),
                "kept": kept_BS[here].double().mean().item(),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="folder with base, mid and rl_reference")
    parser.add_argument("--text", type=Path, required=True, help="JSONL of documents")
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    length = options.sequence_length
    rows, kind, start = read_rows(options.text, options.hf / "base", ROWS, length)
    texts = Texts.of(rows, start)

    def nll(name: str) -> Tensor:
        logp_N = token_logprobs(load_model(options.hf / name), texts, length, name)
        return -torch.from_numpy(logp_N).view(len(rows), length)

    reference_BS = nll("rl_reference")
    found = [
        one for policy in POLICIES for one in summarise(policy, nll(policy), reference_BS, kind, KEEP_RATIO, EPSILON)
    ]
    write_json(options.out, {"kinds": found})


if __name__ == "__main__":
    main()
