"""Experts as transformers 5 holds them in memory: one tensor for all experts of a layer, gate above up.

``save_pretrained`` writes a tensor per expert and projection, as published models have them. A folder that a training
tool wrote from the parameters themselves has the fused ones.

Axes: E experts, X feed-forward units of one expert, H hidden.
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_remit.convert.hf_tensors import HfTensors, Stored

_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


class ExpertTensors(HfTensors):
    """The tensors of a folder, each expert's under a name of its own whichever way they are stored."""

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        super().__init__(folder, dtype)
        self._parts: dict[str, tuple[str, int, slice]] = {}  # a name of its own -> fused tensor, expert, rows
        for fused, stored in list(self._found.items()):
            match = _FUSED.fullmatch(fused)
            if match is None or len(stored.shape) != 3:
                continue
            del self._found[fused]
            experts, rows, columns = stored.shape  # [E, 2X, H] or [E, H, X]
            names = ["gate_proj", "up_proj"] if match[2] == "gate_up_proj" else ["down_proj"]
            count = rows // len(names)
            for expert in range(experts):
                for number, name in enumerate(names):
                    own = f"{match[1]}.{expert}.{name}.weight"
                    self._found[own] = Stored(stored.path, own, (count, columns), stored.dtype)
                    self._parts[own] = (stored.name, expert, slice(number * count, (number + 1) * count))

    def _read(self, stored: Stored) -> torch.Tensor:
        """Of a fused tensor only this part is read. The file is mapped: without, each part would read the whole."""
        if stored.name not in self._parts:
            return super()._read(stored)
        fused, expert, rows = self._parts[stored.name]
        with safe_open(str(stored.path), framework="pt") as file:
            part: torch.Tensor = file.get_slice(fused)[expert : expert + 1, rows][0]
        return part
