"""Log-probabilities and KL divergence of every token under Hugging Face models, a window of text at a time.

Memory does not grow with the text: logits exist for one batch of windows, and fp32 copies of them for a chunk of
tokens. With a teacher two models and their logits are in memory, else one. All values are in nats.

Shape suffixes: N tokens of all texts, B windows of a batch, S positions, C tokens of a chunk, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.models import load_model
from megatron_remit.errors import UserError

# What one batch of windows may hold: logits (256 MiB in fp32) and tokens (a large vocabulary is reached by the first
# limit, a small one by the second). Then the logits of an fp32 chunk, 32 MiB.
BATCH_LOGITS = 1 << 26
BATCH_TOKENS = 1 << 13
CHUNK_LOGITS = 1 << 23


@dataclass(frozen=True)
class Scores:
    """What the models say about the texts, in nats, fp32 arrays [N]."""

    logp: dict[str, np.ndarray]
    """log p(token) by model."""
    kl: dict[str, np.ndarray]
    """KL(teacher || model) over the whole vocabulary by model; empty without a teacher."""


@dataclass(frozen=True)
class _Window:
    first: int
    length: int
    before: int
    """The token ahead of the window: the one before it in its text, or the start token."""

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + self.length)


def score_all(models: dict[str, Path], texts: Texts, teacher: str | None, window: int, dtype: str) -> Scores:
    """Score the texts with every model that ``check_models`` let pass; long texts in windows of ``window`` tokens.

    Each window is predicted from the token before it on. ``dtype`` is that of the models' weights ("auto": as saved).
    With a teacher it runs again next to each other model. Raises UserError if a model does not load, or gives a value
    that is no finite number.
    """
    logp: dict[str, np.ndarray] = {}
    kl: dict[str, np.ndarray] = {}
    guide = None if teacher is None else load_model(models[teacher], dtype)
    # The teacher first: if it gives NaN, no other model is blamed for its KL.
    for name in sorted(models, key=lambda name: name != teacher):
        if guide is not None and name == teacher:
            model, against = guide, None
        else:
            model, against = load_model(models[name], dtype), guide
        logp[name] = np.empty(len(texts.ids_N), dtype=np.float32)
        if against is not None:
            kl[name] = np.empty_like(logp[name])
        for place, logp_S, kl_S in _scored(model, texts, window, name, against):
            logp[name][place] = logp_S
            _check_finite(logp_S, "log-probability", name)
            if kl_S is not None:
                kl[name][place] = kl_S
                _check_finite(kl_S, "KL divergence to the teacher", name)
        del model
    return Scores({name: logp[name] for name in models}, kl)


def token_logprobs(model: PreTrainedModel, texts: Texts, window: int, name: str) -> np.ndarray:
    """log p of every token of the texts under one model, nats, fp32 [N]; ``name`` stands at the progress bar.

    Long texts are scored in windows of ``window`` tokens. Values that are no finite numbers are returned as they are.
    """
    logp_N = np.empty(len(texts.ids_N), dtype=np.float32)
    for place, logp_S, _ in _scored(model, texts, window, name):
        logp_N[place] = logp_S
    return logp_N


def _windows(texts: Texts, window: int) -> list[_Window]:
    found = []
    for start, end in zip(texts.starts[:-1], texts.starts[1:], strict=True):
        for first in range(start, end, window):
            before = texts.start_token if first == start else int(texts.ids_N[first - 1])
            found.append(_Window(first, min(window, end - first), before))
    # Windows of like length share a batch.
    return sorted(found, key=lambda one: one.length, reverse=True)


@torch.no_grad()
def _scored(
    model: PreTrainedModel, texts: Texts, window: int, name: str, teacher: PreTrainedModel | None = None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Place in the texts, log p and KL(teacher || model) of each window, as soon as its batch is computed."""
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    windows = _windows(texts, window)
    with tqdm(total=len(texts.ids_N), desc=f"scoring with {name}", unit="token", unit_scale=True) as progress:
        begin = 0
        while begin < len(windows):
            size = max(1, min(BATCH_LOGITS // vocabulary, BATCH_TOKENS) // windows[begin].length)
            batch = windows[begin : begin + size]
            begin += size
            input_BS = _inputs(batch, texts).to(device)
            logits_BSV = model(input_ids=input_BS, use_cache=False).logits
            guide_BSV = None if teacher is None else teacher(input_ids=input_BS, use_cache=False).logits
            for row, one in enumerate(batch):
                target_S = torch.from_numpy(texts.ids_N[one.place]).to(device)
                logp_S, kl_S = _compare(logits_BSV[row], target_S, None if guide_BSV is None else guide_BSV[row])
                yield one.place, logp_S.cpu().numpy(), None if kl_S is None else kl_S.cpu().numpy()
                progress.update(one.length)


def _inputs(batch: list[_Window], texts: Texts) -> Tensor:
    # Padding stands on the right, where causal attention keeps it out of every position that is read.
    input_BS = torch.full((len(batch), batch[0].length), texts.start_token, dtype=torch.long)
    for row, one in enumerate(batch):
        input_BS[row, 0] = one.before
        input_BS[row, 1 : one.length] = torch.from_numpy(texts.ids_N[one.first : one.first + one.length - 1])
    return input_BS


def _check_finite(values_S: np.ndarray, what: str, name: str) -> None:
    if not np.isfinite(values_S).all():
        raise UserError(
            f"--model {name}: the {what} of a token is NaN or infinite; the model has diverged, or overflows in its "
            "dtype: leave it out, or try --dtype float32"
        )


def _compare(logits_SV: Tensor, target_S: Tensor, guide_SV: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """log p of the targets, and KL(guide || model), a chunk of tokens at a time."""
    step = max(1, CHUNK_LOGITS // logits_SV.size(-1))
    logp, kl = [], []
    for begin in range(0, len(target_S), step):
        chunk = slice(begin, min(begin + step, len(target_S)))
        logp_CV = logits_SV[chunk].float().log_softmax(dim=-1)
        logp.append(logp_CV.gather(1, target_S[chunk, None])[:, 0])
        if guide_SV is not None:
            guide_CV = guide_SV[chunk].float().log_softmax(dim=-1)
            kl.append((guide_CV.exp() * (guide_CV - logp_CV)).sum(dim=-1))
    return torch.cat(logp), torch.cat(kl) if kl else None
