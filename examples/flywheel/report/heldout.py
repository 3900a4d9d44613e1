"""Held-out texts under the base and the RL model, token by token: scored, and as the heatmap shows them.

The heatmap colours tokens by their weight (equation 5): red up to 1 + eps, blue down to 1 - eps, none at 1. All values
but the weights are in nats.
Shape suffixes: N tokens of all texts, B texts, S positions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_remit.analysis.figures import MINUS
from megatron_remit.analysis.heatmap import ShownText, Token, shown_piece
from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.models import load_model, load_tokenizer, start_token, tokenize
from megatron_remit.analysis.score import token_logprobs
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
    texts = Texts.of(ids, start_token(tokenizer, base_folder))
    logp_base_N = token_logprobs(base, texts, max_tokens, base_folder.name)
    del base
    if tokenize(load_tokenizer(rl_folder), rows, max_tokens)[0] != ids:
        raise UserError(f"{rl_folder}: its tokenizer splits the held-out texts otherwise than the one of {base_folder}")
    logp_rl_N = token_logprobs(load_model(rl_folder), texts, max_tokens, rl_folder.name)
    scored = []
    for row, piece, start, end in zip(rows, pieces, texts.starts[:-1], texts.starts[1:], strict=True):
        if piece:
            scored.append(_scored(row["task"], piece, logp_base_N[start:end], logp_rl_N[start:end], epsilon))
    return scored


def _scored(
    task: str, pieces: list[str], logp_base: np.ndarray, logp_rl: np.ndarray, epsilon: float | None
) -> ScoredText:
    policy_BS, reference_BS = -torch.from_numpy(logp_base)[None], -torch.from_numpy(logp_rl)[None]
    weights = remit_weights(policy_BS, reference_BS, torch.ones_like(policy_BS), epsilon)
    delta = weights.delta_BS[0].numpy()
    return ScoredText(task, pieces, logp_base, logp_rl, delta, delta - delta.mean(), weights.weight_BS[0].numpy())


def choose(texts: list[ScoredText], per_task: int = 4) -> list[ScoredText]:
    """The first ``per_task`` texts of every task, in the order of the file: nothing is picked by its result."""
    tasks = dict.fromkeys(text.task for text in texts)
    return [text for task in tasks for text in [t for t in texts if t.task == task][:per_task]]


def weight_share(weight: float, epsilon: float | None) -> float:
    """The colour of a weight: 1 (full red) at 1 + eps, -1 (full blue) at 1 - eps, 0 at exactly 1. Without a clip the
    weights lie between 0 and 2, and so do the full colours."""
    reach = epsilon if epsilon else 1.0
    return max(-1.0, min((weight - 1) / reach, 1.0))


def shown(text: ScoredText, epsilon: float | None) -> ShownText:
    """The text for the page."""
    return ShownText(text.task, "", [_token(text, i, epsilon) for i in range(len(text.pieces))])


def _token(text: ScoredText, i: int, epsilon: float | None) -> Token:
    margin, weight = float(text.margin[i]), float(text.weight[i])
    tip = (
        f"log p RL    {text.logp_rl[i]:8.3f}\n"
        f"log p base  {text.logp_base[i]:8.3f}\n"
        f"margin      {margin:+8.3f} nats\n"
        f"weight      {weight:8.3f}"
    ).replace("-", MINUS)
    return Token(shown_piece(text.pieces[i]), margin, weight_share(weight, epsilon), tip)
