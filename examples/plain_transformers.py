"""ReMiT without Megatron: transformers and torch, on one GPU or a laptop (docs/plain.md). R rows, W = S + 1 tokens."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from numpy.random import RandomState as Draw
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def read_rows(args: Namespace) -> torch.Tensor:
    """The run's rows [R, W] in order, cut and drawn as the training program does with --row-seed and --seed."""
    tokenizer, cut = AutoTokenizer.from_pretrained(args.base, trust_remote_code=False), Draw(args.row_seed)
    texts = [json.loads(line)["text"] for line in args.data.open(encoding="utf-8") if line.strip()]
    documents = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False).input_ids if ids]
    tokens = torch.tensor([token for i in cut.permutation(len(documents)) for token in documents[i]])
    rows_RW = cut.permutation(tokens.unfold(0, args.seq_length + 1, args.seq_length))
    epochs = [Draw([args.seed, i]).permutation(rows_RW) for i in range(args.steps * args.batch // len(rows_RW) + 1)]
    return torch.cat([torch.from_numpy(epoch) for epoch in epochs])[: args.steps * args.batch].to(args.device)


def token_nll(model: PreTrainedModel, row_W: torch.Tensor) -> torch.Tensor:
    """-log p of each token of a row after the first, [S] in nats."""
    with torch.autocast(row_W.device.type, torch.bfloat16, enabled=row_W.is_cuda):
        return cross_entropy(model(row_W[None, :-1], use_cache=False).logits[0].float(), row_W[1:], reduction="none")


def reference_nll(args: Namespace, rows_RW: torch.Tensor) -> torch.Tensor:
    """The reference's NLLs [R, S]: by the model of --rl, or from a score store, which finds a row by its tokens."""
    if not args.score_store:
        model = AutoModelForCausalLM.from_pretrained(args.rl, dtype="float32", trust_remote_code=False).to(args.device)
        return torch.stack([token_nll(model, row_W).detach() for row_W in rows_RW])
    from megatron_remit.score_store import keys, reader  # without Megatron

    store, rows = reader.ScoreStore(args.score_store), rows_RW.cpu()
    found = [store.read(keys.row_key({"tokens": row[:-1], "labels": row[1:]}, False, False)) for row in rows]
    if any(nll_S is None for nll_S in found):
        raise SystemExit(f"error: {args.score_store} lacks rows: other --data, tokenizer, --row-seed or --seq-length?")
    return torch.stack([torch.from_numpy(nll_S) for nll_S in found]).to(args.device)


def train(args: Namespace, model: PreTrainedModel, rows_RW: torch.Tensor, reference_RS: torch.Tensor) -> torch.Tensor:
    """Take the steps, a row at a time. Returns lm loss, loss and gradient norm of each, [steps, 3]."""
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == m], "weight_decay": 0.1 * m} for m in (0, 1)]
    optimizer = torch.optim.AdamW(groups, args.lr, (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps, args.min_lr)
    epsilon, report = args.epsilon if args.objective == "remit" else 0.0, torch.zeros(args.steps, 3)
    for step in range(args.steps):
        for row in range(step * args.batch, (step + 1) * args.batch):
            nll_S = token_nll(model, rows_RW[row])
            delta_S = nll_S.detach() - reference_RS[row]  # equation 3 of the paper
            w_S = (2 * torch.sigmoid(delta_S - delta_S.mean())).clamp(1 - epsilon, 1 + epsilon)  # equations 4 and 5
            loss = (w_S * nll_S).mean() / args.batch  # equation 6
            loss.backward()
            report[step, :2] += torch.tensor([nll_S.mean().item() / args.batch, loss.item()])
        report[step, 2] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print("step {} | lm loss {:.4f} | loss {:.4f} | grad norm {:.3f}".format(step + 1, *report[step]), flush=True)
    return report


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--objective", choices=("ntp", "remit"), default="remit")
    for name in ("base", "data", "out", "rl", "score-store"):
        parser.add_argument(f"--{name}", type=Path, required=name in ("base", "data", "out"))
    numbers = {"lr": 3e-4, "min_lr": 1e-7, "steps": 1000, "batch": 32, "seq_length": 4096, "seed": 1234, "row_seed": 0}
    for name, value in (numbers | {"epsilon": 0.2, "device": "cuda" if torch.cuda.is_available() else "cpu"}).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    args = parser.parse_args()
    rows_RW = read_rows(args)
    reference_RS = reference_nll(args, rows_RW) if args.objective == "remit" else torch.zeros_like(rows_RW[:, 1:])
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype="float32", trust_remote_code=False).to(args.device)
    train(args, model, rows_RW, reference_RS)
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.base, trust_remote_code=False).save_pretrained(args.out)
