"""Log-probabilities and KL divergence of every token, a window of text at a time.

Memory does not grow with the text: logits exist for one batch of windows, and fp32 copies of them for a chunk of
tokens.
With a teacher two models are in memory, else one.

Shape suffixes: N tokens of all texts, B windows of a batch, S positions, C tokens of a chunk, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from megatron_remit.compare.inputs import Texts
from megatron_remit.errors import UserError
from megatron_remit.report.score import load_model

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


def score_all(
    models: dict[str, Path], texts: Texts, teacher: str | None, window: int, dtype: str
) -> Scores:
    """Score the texts with every model; long texts in windows of ``window`` tokens.

    Each window is predicted from the token before it on. ``dtype`` is that of the models' weights ("auto": as saved).
    With a teacher it runs again beside each other model. Raises UserError if a model does not load, cannot take the
    window, or has another number of output rows than the teacher.
    """
    if window < 1:
        raise UserError(f"--seq-length {window}: expected at least 1 token")
    windows = _windows(texts, window)
    logp: dict[str, np.ndarray] = {}
    kl: dict[str, np.ndarray] = {}
    guide = None if teacher is None else _load(models[teacher], window, dtype)
    for name, folder in models.items():
        if name == teacher:
            logp[name] = _run(guide, texts, windows, name)[0]
            continue
        model = _load(folder, window, dtype)
        if guide is not None and model.config.get_text_config().vocab_size != guide.config.get_text_config().vocab_size:
            raise UserError(
                f"--model {name}={folder}: its output has {model.config.get_text_config().vocab_size} rows, the "
                f"teacher's {guide.config.get_text_config().vocab_size}; KL divergence needs one vocabulary"
            )
        logp[name], found = _run(model, texts, windows, name, guide)
        if found is not None:
            kl[name] = found
        del model
    return Scores({name: logp[name] for name in models}, kl)


def _load(folder: Path, window: int, dtype: str) -> PreTrainedModel:
    model = load_model(folder, dtype)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise UserError(f"--seq-length {window}: {folder} was built for sequences of at most {longest} tokens")
    return model


def _windows(texts: Texts, window: int) -> list[_Window]:
    found = []
    for start, end in zip(texts.starts[:-1], texts.starts[1:], strict=True):
        for first in range(start, end, window):
            before = texts.start_token if first == start else int(texts.ids_N[first - 1])
            found.append(_Window(first, min(window, end - first), before))
    # Windows of like length share a batch.
    return sorted(found, key=lambda one: one.length, reverse=True)


@torch.no_grad()
def _run(
    model: PreTrainedModel, texts: Texts, windows: list[_Window], name: str, teacher: PreTrainedModel | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    size = max(1, min(BATCH_LOGITS // vocabulary, BATCH_TOKENS) // windows[0].length)
    logp_N = np.empty(len(texts.ids_N), dtype=np.float32)
    kl_N = None if teacher is None else np.empty_like(logp_N)
    with tqdm(total=len(logp_N), desc=f"scoring with {name}", unit="token", unit_scale=True) as progress:
        for begin in range(0, len(windows), size):
            batch = windows[begin : begin + size]
            # Padding stands on the right, where causal attention keeps it out of every position that is read.
            input_BS = torch.full((len(batch), batch[0].length), texts.start_token, dtype=torch.long)
            for row, one in enumerate(batch):
                input_BS[row, 0] = one.before
                input_BS[row, 1 : one.length] = torch.from_numpy(texts.ids_N[one.first : one.first + one.length - 1])
            logits_BSV = model(input_ids=input_BS.to(device), use_cache=False).logits
            guide_BSV = None if teacher is None else teacher(input_ids=input_BS.to(device), use_cache=False).logits
            for row, one in enumerate(batch):
                place = slice(one.first, one.first + one.length)
                target_S = torch.from_numpy(texts.ids_N[place]).to(device)
                guide_SV = None if guide_BSV is None else guide_BSV[row]
                logp_S, kl_S = _compare(logits_BSV[row], target_S, guide_SV)
                logp_N[place] = logp_S.cpu().numpy()
                if kl_N is not None:
                    kl_N[place] = kl_S.cpu().numpy()
                progress.update(one.length)
    return logp_N, kl_N


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
