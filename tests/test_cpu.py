"""Standing in for CUDA leaves alone what other libraries do with torch; the order of imports does not matter."""

import json
import sys

import pytest
import torch
from transformers import Olmo2ForCausalLM

from megatron_remit import cpu
from tests.hf_models import make_olmo2
from tests.ranks import run_command, run_ranks

cpu.install()

# Prints which of torch's functions and types each module of Megatron holds under a name of its own.
BINDINGS = """
import json, sys, torch
known = {id(value): name for name, value in [*vars(torch).items(), *vars(torch.cuda).items()] if callable(value)}
found = {}
for module_name, module in sys.modules.items():
    for name, value in vars(module).items() if module_name.startswith("megatron.") else ():
        if isinstance(value, tuple) and value and any(id(item) in known for item in value):
            found[f"{module_name}.{name}"] = [known.get(id(item), "another") for item in value]
        elif callable(value):
            found[f"{module_name}.{name}"] = known.get(id(value), "another")
print("bindings", json.dumps(found, sort_keys=True))
"""
IMPORTS = """
from megatron.training import arguments, training
from megatron.core.distributed.fsdp.src.megatron_fsdp import utils
"""
INSTALL = "from megatron_remit import cpu; cpu.install()\n"


def test_factories_follow_the_device_context_that_transformers_builds_models_in():
    with torch.device("meta"):
        assert torch.arange(3).is_meta and torch.empty(2).is_meta
    assert torch.zeros(2, device="cuda").device.type == "cpu"


def bindings(program):
    done = run_command(["python", "-c", program + BINDINGS])
    assert done.returncode == 0, done.failure()
    line = next(line for line in done.output.splitlines() if line.startswith("bindings "))
    return json.loads(line.removeprefix("bindings "))


@pytest.mark.slow
def test_what_megatron_holds_does_not_depend_on_the_order_of_imports():
    before, after = bindings(INSTALL + IMPORTS), bindings(IMPORTS + INSTALL)
    assert before == after
    for module in ("tensor_parallel.random", "distributed.fsdp.src.megatron_fsdp.utils"):
        for name in ("_lazy_call", "_lazy_init"):
            assert before[f"megatron.core.{module}.{name}"] == name
        assert before[f"megatron.core.{module}.device_ctx_manager"] == "device"
    assert before["megatron.core.transformer.module._HALF_TYPES"] == ["HalfTensor", "HalfTensor"]


def test_a_function_compiled_before_runs_eagerly_in_every_thread():
    program = """
import threading, torch
calls = []
@torch.compile
def double(x):
    calls.append(torch.compiler.is_compiling())
    return 2 * x
from megatron_remit import cpu
cpu.install()
double(torch.ones(2))
thread = threading.Thread(target=double, args=(torch.ones(3),))
thread.start()
thread.join()
assert calls == [False, False], calls
"""
    done = run_command(["python", "-c", program])
    assert done.returncode == 0, done.failure()


def test_torchs_compiler_is_not_imported_for_fusions_that_it_may_not_compile():
    report = """
import sys, megatron_remit
from megatron.core.fusions.fused_bias_swiglu import swiglu
print(sorted({"torch._dynamo", "torch._inductor"} & {*sys.modules}), hasattr(swiglu, "_torchdynamo_inline"))
"""
    done = run_command(["python", "-c", "from megatron_remit.programs import train" + report])
    assert done.returncode == 0, done.failure()
    assert done.output.splitlines()[-1] == "[] False"
    done = run_command(["env", "TORCH_COMPILE_DISABLE=0", sys.executable, "-c", report])
    assert done.returncode == 0, done.failure()
    assert done.output.splitlines()[-1] == "['torch._dynamo', 'torch._inductor'] True"


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


def _tokens_go_to_experts_and_come_together(rank):
    cpu.install()
    sent = torch.arange(3.0) + 10 * rank
    received = torch.empty(2 + 2 * rank)
    sizes = torch.tensor([[1, 2], [1, 2]])
    torch.distributed.all_to_all_single(
        received, sent, output_split_sizes=sizes[:, rank], input_split_sizes=sizes[rank], group=None
    )
    assert received.tolist() == [[0.0, 10.0], [1.0, 2.0, 11.0, 12.0]][rank]
    parts = [torch.empty(2), torch.empty(4)]
    torch.distributed.all_gather(parts, received)
    assert torch.cat(parts).tolist() == [0.0, 10.0, 1.0, 2.0, 11.0, 12.0]


def test_gloo_moves_as_many_tokens_as_each_expert_has():
    run_ranks(2, _tokens_go_to_experts_and_come_together)
