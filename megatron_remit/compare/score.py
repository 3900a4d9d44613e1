"""Log-probabilities and KL divergence of every token, a window of text at a time.

Memory does not grow with the text: logits exist for one batch of windows, and fp32 copies of them for a chunk of
tokens. With a teacher two models and their logits are in memory, else one.

Shape suffixes: N tokens of all texts, B windows of a batch, S positions, C tokens of a chunk, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

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


def check_models(models: dict[str, Path], texts: Texts, teacher: str | None, window: int) -> None:
    """What the models' files tell before any of them scores for hours.

    Raises UserError if a model's config or weights cannot be read, it cannot take the window or a token of the texts,
    or has another number of output rows than the teacher.
    """
    if window < 1:
        raise UserError(f"--seq-length {window}: expected at least 1 token")
    configs = {name: _config(name, folder) for name, folder in models.items()}
    largest = max(texts.start_token, int(texts.ids_N.max()))
    for name, folder in models.items():
        rows = configs[name].vocab_size
        longest = getattr(configs[name], "max_position_embeddings", None)
        if longest is not None and window > longest:
            raise UserError(f"--seq-length {window}: {folder} was built for sequences of at most {longest} tokens")
        if largest >= rows:
            raise UserError(
                f"--model {name}={folder}: its vocab_size is {rows}, but the texts hold token {largest}; the tokenizer "
                "in its folder is not the one it was trained with"
            )
        if teacher is not None and rows != configs[teacher].vocab_size:
            raise UserError(
                f"--model {name}={folder}: its output has {rows} rows, the teacher's {configs[teacher].vocab_size}; KL "
                "divergence needs one vocabulary"
            )


def _config(name: str, folder: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        if not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
            raise OSError("it holds no *.safetensors or *.bin file")
        for part in folder.glob("*.safetensors"):
            safe_open(part, "pt")  # reads the header only, and finds a file that was cut short
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--model {name}={folder}: does not load as a Hugging Face model: {first}") from None
    return config


def score_all(models: dict[str, Path], texts: Texts, teacher: str | None, window: int, dtype: str) -> Scores:
    """Score the texts with every model that :func:`check_models` let pass; long texts in windows of ``window`` tokens.

    Each window is predicted from the token before it on. ``dtype`` is that of the models' weights ("auto": as saved).
    With a teacher it runs again beside each other model. Raises UserError if a model does not load, or gives a value
    that is no finite number.
    """
    windows = _windows(texts, window)
    logp: dict[str, np.ndarray] = {}
    kl: dict[str, np.ndarray] = {}
    guide = None if teacher is None else load_model(models[teacher], dtype)
    # The teacher first: if it gives NaN, no other model is blamed for its KL.
    for name in sorted(models, key=lambda name: name != teacher):
        if name == teacher:
            logp[name] = _run(guide, texts, windows, name)[0]
            continue
        model = load_model(models[name], dtype)
        logp[name], found = _run(model, texts, windows, name, guide)
        if found is not None:
            kl[name] = found
        del model
    return Scores({name: logp[name] for name in models}, kl)


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
    logp_N = np.empty(len(texts.ids_N), dtype=np.float32)
    kl_N = None if teacher is None else np.empty_like(logp_N)
    with tqdm(total=len(logp_N), desc=f"scoring with {name}", unit="token", unit_scale=True) as progress:
        begin = 0
        while begin < len(windows):
            size = max(1, min(BATCH_LOGITS // vocabulary, BATCH_TOKENS) // windows[begin].length)
            batch = windows[begin : begin + size]
            begin += size
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
                _check_finite(logp_N[place], "log-probability", name)
                if kl_N is not None:
                    kl_N[place] = kl_S.cpu().numpy()
                    _check_finite(kl_N[place], "KL divergence to the teacher", name)
                progress.update(one.length)
    return logp_N, kl_N


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
