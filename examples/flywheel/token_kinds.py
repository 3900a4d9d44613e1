"""What ReMiT's weights and RHO-1's choice do to each kind of token of the tiny world, whose truth is known.

Written as JSON, one entry per policy and kind: policy, kind, tokens, NLL (nats), delta (nats), mean weight with the
clip and without, share that RHO-1 chooses (kept).

Shape suffixes: B rows of the corpus, S positions.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer
from world.document import PAD, Document, Piece

from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.models import load_model, start_token, tokenize
from megatron_remit.analysis.score import token_logprobs
from megatron_remit.artifacts import write_whole
from megatron_remit.objectives.math.selection import select_in_microbatch
from megatron_remit.objectives.math.weights import remit_weights

ROWS = 480
# Those of the arms.
KEEP_RATIO, EPSILON = 0.8, 0.2


def read_rows(path: Path, folder: Path, count: int) -> tuple[list[list[int]], list[list[str]], int]:
    """The first ``count`` rows of the corpus, their kinds, the start token."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rows = [
        Document(tuple(Piece(text, kind) for text, kind in json.loads(line))) for line in path.read_text().splitlines()
    ][:count]
    found = zip(rows, *tokenize(tokenizer, [{"text": row.text} for row in rows]), strict=True)
    ids, kinds = [], []
    for row, tokens, pieces in found:
        ids.append(tokens)
        kinds.append(list(row.kinds(pieces))[: len(tokens)])
    return ids, kinds, start_token(tokenizer, folder)


def summarise(policy: str, policy_BS: Tensor, reference_BS: Tensor, kinds: list[list[str]]) -> list[dict[str, object]]:
    """Means over the tokens of each kind; the NLLs are nats."""
    mask_BS = torch.tensor([[float(kind != PAD) for kind in row] for row in kinds])
    weights = remit_weights(policy_BS, reference_BS, mask_BS, EPSILON)
    free = remit_weights(policy_BS, reference_BS, mask_BS, None)
    kept_BS = select_in_microbatch(weights.delta_BS, mask_BS, KEEP_RATIO, "sequence")
    flat = [name for row in kinds for name in row]
    found = []
    for name in sorted({*flat} - {PAD}):
        here = torch.tensor([one == name for one in flat]).view_as(kept_BS)
        found.append(
            {
                "policy": policy,
                "kind": name,
                "tokens": int(here.sum()),
                "nll": policy_BS[here].mean().item(),
                "delta": weights.delta_BS[here].mean().item(),
                "weight": weights.weight_BS[here].mean().item(),
                "weight without clip": free.weight_BS[here].mean().item(),
                "kept": kept_BS[here].double().mean().item(),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="folder with the models")
    parser.add_argument("--policies", type=json.loads, required=True, help='JSON: {"name for readers": "folder there"}')
    parser.add_argument("--reference", default="rl_reference")
    parser.add_argument("--pieces", type=Path, required=True, help="pieces.jsonl of make_world.py")
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--about", type=json.loads, default={}, help="JSON that the result begins with")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    length = options.sequence_length
    rows, kinds, start = read_rows(options.pieces, options.hf / next(iter(options.policies.values())), ROWS)
    texts = Texts.of(rows, start)

    def nll(model: str) -> Tensor:
        logp_N = token_logprobs(load_model(options.hf / model), texts, length, model)
        return -torch.from_numpy(logp_N).view(len(rows), length)

    reference_BS = nll(options.reference)
    models = options.policies.items()
    found = [one for name, model in models for one in summarise(name, nll(model), reference_BS, kinds)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps(options.about | {"policies": options.policies, "kinds": found}) + "\n")


if __name__ == "__main__":
    main()
