"""Standing in for CUDA leaves alone what other libraries do with torch."""

import torch
from transformers import Olmo2ForCausalLM

from megatron_remit import cpu
from tests.hf_models import make_olmo2
from tests.ranks import run_command

cpu.install()


def test_factories_follow_the_device_context_that_transformers_builds_models_in():
    with torch.device("meta"):
        assert torch.arange(3).is_meta and torch.empty(2).is_meta
    assert torch.zeros(2, device="cuda").device.type == "cpu"


def test_a_hugging_face_model_loads_as_without_it(tmp_path):
    make_olmo2(tmp_path / "hf", tokenizer=False)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = Olmo2ForCausalLM.from_pretrained(tmp_path / "hf")(ids).logits
    torch.save(logits, tmp_path / "logits.pt")
    program = f"""
import torch, transformers
model = transformers.Olmo2ForCausalLM.from_pretrained({str(tmp_path / "hf")!r})
with torch.no_grad():
    assert torch.equal(model(torch.arange(12)[None]).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    done = run_command(["python", "-c", program])
    assert done.returncode == 0, done.failure()
