"""Every family with Transformer Engine's layers asks for tensors that an import has, by name and shape.

The layers are those of TE's Python wheel, which `make env` downloads, built on a CPU with a stand-in for its compiled
part (stand_in.py); what they compute is not tested here.
"""

import json
import pickle
import sys
import zipfile

import pytest

from megatron_remit.convert.hf_to_megatron import import_hf
from tests.hf_models import make_model
from tests.ranks import Zygote, run_job
from tests.real.conftest import wheel_of
from tests.te.build import build

FAMILIES = ("llama", "olmo2", "olmo3", "qwen2", "qwen3", "smollm3", "youtu")
LAYOUTS = {"TP1": (1, ""), "TP2, sequence parallel": (2, "--tensor-model-parallel-size 2 --sequence-parallel")}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer_engine")
    with zipfile.ZipFile(wheel_of("transformer_engine")) as wheel:
        wheel.extractall(folder)
    one = Zygote("tests.te.zygote", folder)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def built(zygote, tmp_path_factory):
    """A function: family and layout to what ``build`` reports, each built once."""
    folder, done = tmp_path_factory.mktemp("families"), {}

    def call(family, layout):
        if (family, layout) not in done:
            root = folder / family
            if not root.exists():
                make_model(family, folder / f"hf_{family}")
                import_hf(folder / f"hf_{family}", root)
            ranks, more = LAYOUTS[layout]
            flags = (
                f"--load {root} --use-checkpoint-args --finetune --tokenizer-type HuggingFaceTokenizer "
                f"--tokenizer-model {root}/hf --seq-length 32 --micro-batch-size 1 --global-batch-size 2 "
                "--train-iters 1 --lr 1e-3 --mock-data --split 100,0,0 --eval-iters 0 --objective remit "
                f"--reference-load {root} --transformer-impl transformer_engine --bf16 --use-distributed-optimizer "
                f"--make-vocab-size-divisible-by 8 {more}"
            )
            out = folder / f"{family}_{ranks}.json"
            what = pickle.dumps((build, (str(root), str(out), flags.split())))
            run = run_job(ranks, zygote=zygote, call=what, path=tuple(sys.path))
            assert run.returncode == 0, run.failure()
            done[family, layout] = json.loads(out.read_text())
        return done[family, layout]

    return call


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_import_has_every_tensor_that_the_layers_ask_for(family, layout, built):
    report = built(family, layout)
    for model in report["models"].values():
        # The rows of the vocabulary are padded for the layout.
        padded = {name: report["tensors"][name][:1] + model["tensors"][name][1:] for name in model["any rows"]}
        assert model["tensors"] | padded == report["tensors"]
        assert model["objects"] == [key for key in report["objects"] if key.startswith("decoder.")]
    assert report["equal"] and report["norms of ones"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_products_are_those_of_transformer_engine(family, built):
    layers = built(family, "TP1")["models"]["policy"]["layers"]
    assert [name for name in layers if name.endswith(("TEColumnParallelLinear", "TELayerNormColumnParallelLinear"))]
    assert [name for name in layers if name.endswith("TEDotProductAttention")]


def test_olmo2_has_this_projects_norms_between_them(built):
    """After attention and MLP of each of four layers; on a GPU they are torch's fused kernel (specs/rms.py)."""
    layers = built("olmo2", "TP1")["models"]["policy"]["layers"]
    assert layers["megatron_remit.specs.olmo2.Olmo2SelfAttention"] == 4
    assert layers["megatron_remit.specs.norm.RMSNorm"] >= 8
