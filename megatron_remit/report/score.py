"""Log-probabilities of held-out tokens under the Hugging Face models of a run.

Shape suffixes: B texts, S positions, V vocabulary. All values are in nats.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from megatron_remit.errors import UserError
from megatron_remit.objectives.math.weights import remit_weights


@dataclass(frozen=True)
class ScoredText:
    """One held-out text, token by token; every array is [tokens].

    ``pieces`` are the slices of the text that the tokens stand for; ``margin`` is log p_RL - log p_base, which equals
    delta = nll_base - nll_RL (paper, equation 3); ``centered`` is delta less its mean over this text (equation 4);
    ``weight`` is equation 5 for the base model as the policy.
    """

    task: str
    pieces: list[str]
    logp_base: np.ndarray
    logp_rl: np.ndarray
    margin: np.ndarray
    centered: np.ndarray
    weight: np.ndarray


def spread(rows: list[dict], count: int) -> list[dict]:
    """At most ``count`` rows, evenly spaced over the file, so that every task in it keeps its share."""
    if len(rows) <= count:
        return rows
    return [rows[i * len(rows) // count] for i in range(count)]


def score_texts(
    rows: list[dict], base_folder: Path, rl_folder: Path, epsilon: float | None, max_tokens: int
) -> list[ScoredText]:
    """Score every row's text under both models, on CPU or CUDA in fp32; texts are cut after ``max_tokens`` tokens.

    As in the training corpus, where documents follow one another, the first token is predicted from the end-of-text
    token of the document before it. Raises UserError if a folder does not load or the tokenizers disagree.
    """
    tokenizer = load_tokenizer(base_folder)
    base = load_model(base_folder)
    ids, pieces = tokenize(tokenizer, rows, max_tokens)
    start = start_token(tokenizer, base_folder)
    logp_base = token_logprobs(base, ids, start, base_folder.name)
    del base
    if tokenize(load_tokenizer(rl_folder), rows, max_tokens)[0] != ids:
        raise UserError(f"{rl_folder}: its tokenizer splits the held-out texts otherwise than the one of {base_folder}")
    rl = load_model(rl_folder)
    logp_rl = token_logprobs(rl, ids, start, rl_folder.name)
    scored = []
    for row, piece, lb, lr in zip(rows, pieces, logp_base, logp_rl, strict=True):
        if not piece:
            continue
        weights = remit_weights(-lb[None], -lr[None], torch.ones_like(lb)[None], epsilon)
        delta = weights.delta_BS[0].numpy()
        scored.append(
            ScoredText(
                row["task"], piece, lb.numpy(), lr.numpy(), delta, delta - delta.mean(), weights.weight_BS[0].numpy()
            )
        )
    return scored


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel, ids: list[list[int]], start: int, name: str, tokens_per_batch: int = 4096
) -> list[Tensor]:
    """log p(token | start token and the tokens before it) for each text, a list of fp32 tensors [tokens], nats."""
    device = next(model.parameters()).device
    result: list[Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    longest = max(len(row) for row in ids)
    size = max(1, tokens_per_batch // max(1, longest))
    for begin in tqdm(range(0, len(order), size), desc=f"scoring held-out texts with {name}", unit="batch"):
        batch = order[begin : begin + size]
        width = max(len(ids[i]) for i in batch)
        if width == 0:
            continue
        # Padding stands on the right, where causal attention keeps it out of every position that is read.
        input_BS = torch.full((len(batch), width), start, dtype=torch.long)
        for line, i in enumerate(batch):
            input_BS[line, 1 : len(ids[i])] = torch.tensor(ids[i][:-1], dtype=torch.long)
        logits_BSV = model(input_ids=input_BS.to(device)).logits.float()
        for line, i in enumerate(batch):
            target_S = torch.tensor(ids[i], dtype=torch.long, device=device)
            logits_SV = logits_BSV[line, : len(ids[i])]
            picked_S = logits_SV.gather(1, target_S[:, None])[:, 0]
            result[i] = (picked_S - logits_SV.logsumexp(dim=-1)).cpu()
    return result


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder. Raises UserError if it does not load."""
    with _loading(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_model(folder: Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """A Hugging Face model for scoring, on CUDA where there is one; ``dtype`` as in transformers. Raises UserError."""
    with _loading(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: does not load as a Hugging Face model with its tokenizer: {first}") from None


def start_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """The token from which a text's first one is predicted: end of text, as between the documents of a corpus."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return token
    raise UserError(f"{folder}: the tokenizer has no end-of-text token, from which the first token would be predicted")


def tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_tokens: int | None = None
) -> tuple[list[list[int]], list[list[str]]]:
    """Token ids and the slice of the text behind each token (whitespace that the tokenizer drops goes to the next)."""
    encoded = tokenizer([row["text"] for row in rows], add_special_tokens=False, return_offsets_mapping=True)
    all_pieces = []
    for row, offsets in zip(rows, encoded["offset_mapping"], strict=True):
        pieces, end = [], 0
        for _, stop in offsets[:max_tokens]:
            pieces.append(row["text"][end : max(stop, end)])
            end = max(stop, end)
        all_pieces.append(pieces)
    return [ids[:max_tokens] for ids in encoded["input_ids"]], all_pieces
