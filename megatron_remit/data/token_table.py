"""Two tokenizers token by token: at which ids they differ, and whether added tokens alone do.

An added token is one that a tokenizer holds beside the vocabulary that it was trained with: the special ones, reserved
ones, those of a chat template. Reinforcement learning often renames or adds such tokens.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_remit.convert.hf_side_files import has_tokenizer
from megatron_remit.data.tokenizer import fingerprint, open_tokenizer
from megatron_remit.errors import UserError


@dataclass(frozen=True)
class TokenTable:
    """What the tokenizer in a Hugging Face folder says."""

    ids: dict[str, int]
    added: frozenset[int]
    """Ids of added tokens."""
    merges: tuple[str, ...] = ()
    """A BPE tokenizer's merges in their order, "left right"; empty where tokenizer.json has none."""

    @cached_property
    def fingerprint(self) -> str:
        """As :func:`megatron_remit.data.tokenizer.fingerprint`."""
        return fingerprint(self.ids)

    @property
    def size(self) -> int:
        """The highest id, plus 1."""
        return max(self.ids.values()) + 1


def read_table(folder: Path) -> TokenTable | None:
    """The tokenizer in ``folder`` as transformers reads it; None when it holds none.

    Raises:
        UserError: it cannot be read.
    """
    if not has_tokenizer(folder):
        return None
    try:
        tokenizer = open_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: its tokenizer cannot be read ({error}); copy the tokenizer's files again"
        ) from error
    return TokenTable(tokenizer.get_vocab(), frozenset(tokenizer.added_tokens_decoder), _merges(folder))


def _merges(folder: Path) -> tuple[str, ...]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ()
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    merges = (content.get("model") or {}).get("merges") or ()
    # Older files hold "left right", newer ones ["left", "right"].
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)


@dataclass(frozen=True)
class Difference:
    """The ids at which two tokenizers hold different tokens, in rising order, with the tokens of both."""

    tokens: dict[int, tuple[str | None, str | None]]
    """By id: the token of the base and that of the reference; None where one has no token."""
    ordinary: tuple[int, ...]
    """Those of the ids at which a token is not an added one."""
    merge: str | None = None
    """The first merge that is not the same, in words."""

    def at(self, token_id: int) -> str:
        """The tokens at this id, in words."""
        base, reference = self.tokens[token_id]
        return f"id {token_id}: {_quoted(base)} in base, {_quoted(reference)} in reference"

    def first(self) -> str:
        """The first id that differs in words, and where that is an added token's, the first ordinary one too; where
        no ordinary one differs, the first merge that does."""
        found = list(self.tokens)[:1]
        found += [token_id for token_id in self.ordinary[:1] if token_id not in found]
        words = [self.at(token_id) for token_id in found]
        if self.merge is not None and not self.ordinary:
            words.append(self.merge)
        return "; ".join(words)


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def compare(base: TokenTable, reference: TokenTable) -> Difference:
    """Where ``reference`` has other tokens or other merges than ``base``."""
    at_base = {token_id: token for token, token_id in base.ids.items() - reference.ids.items()}
    at_reference = {token_id: token for token, token_id in reference.ids.items() - base.ids.items()}
    ids = sorted(at_base.keys() | at_reference.keys())
    return Difference(
        {token_id: (at_base.get(token_id), at_reference.get(token_id)) for token_id in ids},
        tuple(
            token_id
            for token_id in ids
            if not (_is_added(token_id, at_base, base) and _is_added(token_id, at_reference, reference))
        ),
        _first_merge(base.merges, reference.merges),
    )


def _is_added(token_id: int, tokens: dict[int, str], table: TokenTable) -> bool:
    """Whether what ``table`` alone has at this id is an added token; nothing counts as one."""
    return token_id not in tokens or token_id in table.added


def _first_merge(base: tuple[str, ...], reference: tuple[str, ...]) -> str | None:
    if not base or not reference or base == reference:
        return None
    number = next(
        (i for i, (one, other) in enumerate(zip(base, reference, strict=False)) if one != other),
        min(len(base), len(reference)),
    )
    one, other = (merges[number] if number < len(merges) else None for merges in (base, reference))
    return f"merge {number}: {_quoted(one)} in base, {_quoted(other)} in reference".replace("no token", "no merge")
