"""The config.json files of published models, one JSON file per family in tests/convert/published/.

Each model has the ``source`` of its values, and its ``config`` and the number of ``parameters`` that its authors or the
hub state; or the model that it is ``like``, with the ``changes`` of its config.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("published")


@dataclass(frozen=True)
class Published:
    config: dict[str, Any]
    parameters: int

    def write(self, folder):
        """The model's folder without its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


def _read():
    for path in sorted(_FOLDER.glob("*.json")):
        models = json.loads(path.read_text())
        for name, model in models.items():
            base = models[model.get("like", name)]
            assert model["source"]
            yield name, Published(base["config"] | model.get("changes", {}), base["parameters"])


PUBLISHED = dict(_read())
