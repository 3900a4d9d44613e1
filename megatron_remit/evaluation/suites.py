"""The suites of ``suites/*.yaml``: each a group for lm-eval, whose metadata has the columns of the paper's table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_remit.errors import UserError

FOLDER = Path(__file__).parent / "suites"
SUITES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@dataclass(frozen=True)
class Column:
    """A column of a table: one task of lm-eval, or a group of tasks whose questions are counted together."""

    name: str
    task: str
    metric: str
    """Metric and filter, as lm-eval joins them: ``exact_match,strict-match``."""
    questions: int
    """What a score is a share of: questions of the whole data set, of IFEval instructions."""
    overrides: dict[str, Any]
    """What the suite changes in lm-eval's task; always ``num_fewshot``."""

    @property
    def shots(self) -> int:
        return self.overrides["num_fewshot"]


@dataclass(frozen=True)
class Suite:
    """A table: ``columns`` in the paper's order. ``chat_template``: whether prompts go through the model's."""

    name: str
    version: str
    chat_template: bool
    columns: tuple[Column, ...]

    def chosen(self, names: list[str]) -> tuple[Column, ...]:
        """The columns of these names in the table's order, all for an empty list. Raises UserError."""
        known = [column.name for column in self.columns]
        for name in names:
            if name not in known:
                raise UserError(f"--columns {name}: the suite {self.name} has {', '.join(known)}")
        return tuple(column for column in self.columns if not names or column.name in names)


def read_suite(name: str) -> Suite:
    """The suite of ``suites/NAME.yaml``. Raises UserError for another name than those of ``SUITES``."""
    if name not in SUITES:
        raise UserError(f"--suite {name}: expected one of {', '.join(SUITES)}")
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    overrides = {entry.pop("task"): entry for entry in content["task"]}
    metadata = content["metadata"]
    columns = tuple(Column(**column, overrides=overrides[column["task"]]) for column in metadata["columns"])
    return Suite(name, str(metadata["version"]), metadata["chat_template"], columns)
