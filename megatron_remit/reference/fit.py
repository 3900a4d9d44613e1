"""Whether a reference reads the policy's tokens: embedding rows, tokenizers and the ids that the corpus holds.

The plan of a run and the training program ask the same functions, the one about two Hugging Face folders, the other
about two checkpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.data.occurring_ids import count_ids
from megatron_remit.data.token_table import Difference, TokenTable, compare, read_table
from megatron_remit.errors import UserError

_FLAG = "--allow-reference-special-tokens"


@dataclass(frozen=True)
class Model:
    """What is known of the policy or the reference."""

    name: str
    """What messages call it: its folder, or the flag that names it."""
    rows: int
    """Tokens of its embedding, without the rows that padding adds for tensor parallelism."""
    tokenizer: Path | None
    """The Hugging Face folder of its tokenizer; None for one of another kind."""
    fingerprint: str | None = None
    """That of its tokenizer, where a checkpoint or the run states it. A policy with neither has a tokenizer without
    token strings (NullTokenizer), which is compared with none."""


def common_rows(policy_rows: int, reference_rows: int) -> int:
    """Over how many token ids, from 0 on, the reference's probabilities are taken: those that both models have."""
    return min(policy_rows, reference_rows)


def check_length(where: str, length: int | None, seq_length: int) -> None:
    """Raise UserError if the model of ``where`` was made for at most ``length`` tokens and the run has more."""
    if length is not None and length < seq_length:
        raise UserError(
            f"{where}: made for sequences of at most {length} tokens, --seq-length is {seq_length}; shorten the run's "
            "sequences or use a model with a longer context"
        )


def check_tokens(policy: Model, reference: Model, corpora: Sequence[str] | None, allow_special: bool) -> list[str]:
    """Check that the reference reads each token of the corpora as the token that the policy reads.

    The tokenizers may differ in added tokens (special, reserved, a chat template's), if none of these ids occurs in the
    corpora. An id for which the reference has no row must not occur either.

    Args:
        corpora: prefixes of the run's corpora, which are read through if there is such an id; None for mock data.
        allow_special: accept other added tokens wherever they occur.

    Returns:
        What a user should know about the pair, a sentence each.

    Raises:
        UserError: a tokenizer is missing, or differs in more than added tokens, or an id in question occurs.
    """
    difference, size = _compared(policy, reference)
    notes = []
    if reference.rows != policy.rows:
        notes.append(
            f"the reference has {reference.rows} embedding rows, the policy {policy.rows}: the reference's "
            f"probabilities are taken over the first {common_rows(policy.rows, reference.rows)}"
        )
    _refuse_without_row(range(reference.rows, min(size, policy.rows)), reference, corpora, difference)
    if difference.tokens:
        where = f"{_FLAG} accepts them wherever they occur"
        if not allow_special:
            _refuse_occurring(difference, policy, reference, corpora)
            where = "none of them occurs in the corpus"
        notes.append(
            f"the reference's tokenizer is the policy's except for added tokens, {len(difference.tokens)} of them "
            f"({difference.first()}); {where}"
        )
    return notes


def _compared(policy: Model, reference: Model) -> tuple[Difference, int]:
    """Where the tokenizers differ, if only in added tokens; and how many ids the policy's tokenizer has."""
    same = Difference({}, ())
    if policy.tokenizer is None and policy.fingerprint is None:
        return same, policy.rows
    base, other = _table(policy), _table(reference)
    known = (_fingerprint(policy, base), _fingerprint(reference, other))
    size = policy.rows if base is None else base.size
    if known[0] == known[1] and (base is None or other is None):
        return same, size
    if base is None or other is None:
        raise _not_comparable(reference if other is None else policy, policy, reference)
    difference = compare(base, other)
    if difference.ordinary or difference.merge:
        raise UserError(
            f"{reference.name}: its tokenizer ({len(other.ids)} tokens) is not that of {policy.name} ({len(base.ids)} "
            f"tokens): {difference.first()}; {len(difference.tokens)} ids differ, {len(difference.ordinary)} of them "
            "in tokens that are not added or special ones; use the RL model of the same tokenizer"
        )
    return difference, size


def _table(model: Model) -> TokenTable | None:
    """The tokenizer in the model's folder; None if there is none, or another than the stated one."""
    table = None if model.tokenizer is None else read_table(model.tokenizer)
    if table is not None and model.fingerprint not in (None, table.fingerprint):
        return None
    return table


def _fingerprint(model: Model, table: TokenTable | None) -> str:
    found = model.fingerprint or (table and table.fingerprint)
    if found:
        return found
    where = f"{model.name}: " if str(model.tokenizer) != model.name else ""
    raise UserError(
        f"{where}{model.tokenizer} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json), so nothing says "
        "which tokens the model's ids stand for; copy the tokenizer's files of the model into that folder"
    )


def _not_comparable(lacking: Model, policy: Model, reference: Model) -> UserError:
    where = "a Hugging Face folder" if lacking.tokenizer is None else f"{lacking.tokenizer}/tokenizer.json"
    return UserError(
        f"{reference.name}: its tokenizer is not that of {policy.name}, and whether only added tokens differ cannot be "
        f"seen: the tokenizer of {lacking.name} was looked for in {where} and is not there; copy the tokenizer's files "
        "of that model there, or use the RL model of the same tokenizer"
    )


def _refuse_without_row(
    ids: Iterable[int], reference: Model, corpora: Sequence[str] | None, difference: Difference
) -> None:
    found = _first_occurring(list(ids), corpora)
    if found is not None:
        where, token_id = found
        token = f" ({difference.at(token_id)})" if token_id in difference.tokens else ""
        raise UserError(
            f"{where}, and {reference.name} has only {reference.rows} embedding rows, so no probability for it{token}; "
            "use a reference with a row for each token, or write the corpus without that token"
        )


def _refuse_occurring(difference: Difference, policy: Model, reference: Model, corpora: Sequence[str] | None) -> None:
    found = _first_occurring([token_id for token_id in difference.tokens if token_id < policy.rows], corpora)
    if found is not None:
        where, token_id = found
        raise UserError(
            f"{where}, and it is another token for {reference.name}: {difference.at(token_id)}; use the RL model of "
            f"the same tokenizer, write the corpus without that token, or accept the difference with {_FLAG}"
        )


def _first_occurring(ids: list[int], corpora: Sequence[str] | None) -> tuple[str, int] | None:
    """In words where the first of the ids that occurs does, and that id."""
    if not ids:
        return None
    if corpora is None:
        return f"--mock-data is no corpus that could show that token id {ids[0]} does not occur", ids[0]
    for prefix in corpora:
        for token_id, count in count_ids(prefix, ids).items():
            if count:
                return f"{prefix}.bin: token id {token_id} occurs {count} times", token_id
    return None
