"""A pickle in the bytes of a checkpoint's object is refused unless it is what Transformer Engine writes there."""

import io
import pickle
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
import torch

from megatron_remit.trust import pickles
from tests.real.conftest import extract
from tests.trust.attack import MakesFile, MakesFileByName, tensor

RECIPE = "transformer_engine.common.recipe"


def saved(content):
    """As a checkpoint stores an object: in a list with one entry per shard."""
    file = io.BytesIO()
    torch.save([content], file)
    return file.getvalue()


class HoldsStorage:
    """A tensor's storage whose bytes are ``harmful``, not what ``torch.save`` made of one."""

    def __init__(self, harmful):
        self.content = saved(harmful)

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


HARMFUL = {
    "a_tensor": tensor,
    "a_tensor_of_another_dtype": lambda harmful: tensor(harmful, torch.int64),
    "bytes": pickle.dumps,
    "a_buffer": lambda harmful: io.BytesIO(pickle.dumps(harmful)),
    "deeper": lambda harmful: {"state": [(tensor(harmful),)]},
    "then_damaged": lambda harmful: pickle.dumps(harmful).replace(b"R.", b"R\xff"),
    "in_a_storage": lambda harmful: tensor({"scale_fwd": HoldsStorage(harmful)}),
}


@pytest.mark.parametrize("harmful", [MakesFile, MakesFileByName])
@pytest.mark.parametrize("place", HARMFUL)
def test_harmful_bytes_are_refused_by_the_class_and_not_run(tmp_path, place, harmful):
    content = saved(HARMFUL[place](harmful(tmp_path / "made")))
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL (posix\.mkdir|builtins\.eval|eval)"):
        pickles.load_object(content)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "data",
    [
        torch.empty(0, dtype=torch.uint8),
        torch.zeros(100, dtype=torch.uint8),
        torch.Generator().manual_seed(99).get_state(),  # its first byte is that of a class's name in a pickle
        torch.frombuffer(bytearray(b"c\n\0\0\n"), dtype=torch.uint8),
        torch.ones(3, dtype=torch.bfloat16),
        pickle.dumps({"of": ["plain", 1.0, None]}),
    ],
)
def test_bytes_that_name_no_class_are_data(data):
    (found,) = pickles.load_object(saved(data))
    assert type(found) is type(data) and (torch.equal(found, data) if isinstance(data, torch.Tensor) else found == data)


def test_a_damaged_state_is_refused(recipe):
    content = saved(pickle.dumps(recipe.DelayedScaling()).replace(b"b.", b"b\xff"))
    with pytest.raises(pickle.UnpicklingError, match="invalid load key"):
        pickles.load_object(content)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Transformer Engine's module of recipes, from its wheel; its package cannot be imported without CUDA."""
    file = extract("transformer_engine", "transformer_engine/common/recipe/__init__.py", tmp_path)
    spec = spec_from_file_location(RECIPE, file)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.common", ModuleType("transformer_engine.common"))
    monkeypatch.setitem(sys.modules, RECIPE, module)
    spec.loader.exec_module(module)
    return module


def test_what_transformer_engine_writes_is_read(recipe, monkeypatch):
    scaling = {"scale_fwd": torch.ones(3), "amax_history_fwd": torch.rand(16, 3), "scale_bwd": torch.ones(2)}
    names = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling", "NVFP4BlockScaling")
    states = [
        {"recipe": getattr(recipe, name)(), "extra_fp8_variables": {"num_gemms": 1, "fp8_max": (448, 1.5)}} | scaling
        for name in names
    ]
    contents = [saved(tensor(state)) for state in states]
    # What other programs than Megatron pickle.
    monkeypatch.setattr(torch.storage, "_load_from_bytes", lambda _: None)
    torch.storage._load_from_bytes.__module__ = "torch.storage"
    torch.storage._load_from_bytes.__qualname__ = torch.storage._load_from_bytes.__name__ = "_load_from_bytes"
    contents.append(saved(tensor(states[0])))
    for name in RECIPE, "transformer_engine.common", "transformer_engine":
        monkeypatch.delitem(sys.modules, name)  # a machine that exports needs none of it
    for content in contents:
        pickles.load_object(content)
