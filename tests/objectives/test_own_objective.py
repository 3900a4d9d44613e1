"""An objective from outside the package, as docs/new-objective.md shows it, in the training program."""

import re

import pytest

from tests.ranks import ROOT, pretrain, run_command


@pytest.fixture(scope="module")
def own_module(tmp_path_factory):
    """A folder that holds the page's ``behind.py``."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/new-objective.md").read_text(), re.S)[1]
    assert len(code.splitlines()) <= 40
    folder = tmp_path_factory.mktemp("own")
    (folder / "behind.py").write_text(code)
    return folder


def train(material, own_module, ranks=1, **overrides):
    flags = material.remit(**{"objective": "behind:Behind", "behind_margin": 0.01, "lr": 0.3} | overrides)
    return pretrain(ranks, *flags, cwd=own_module)


@pytest.fixture(scope="module")
def one_rank(material, own_module):
    return train(material, own_module)


def test_the_example_of_the_page_trains_as_it_says(one_rank):
    for share, loss, ntp in zip(
        *(one_rank.series(f"{name}") for name in ("behind share", "behind loss", "lm loss")), strict=True
    ):
        assert 0.1 < share < 0.9
        assert 0.5 * share * ntp < loss < 2.0 * share * ntp


@pytest.mark.slow
def test_the_first_loss_is_that_of_next_token_prediction(one_rank, material):
    ntp = pretrain(1, *material.flags(train_iters=1))
    assert one_rank.series("lm loss")[0] == pytest.approx(ntp.series("lm loss")[0], rel=1e-6)


@pytest.mark.slow
def test_a_policy_that_equals_its_reference_is_never_behind(material, own_module):
    run = train(material, own_module, reference_load=material.policy, behind_margin=0.0, train_iters=1)
    assert run.series("behind share") == [0.0] and run.series("behind loss") == [0.0]


@pytest.mark.slow
def test_context_parallelism_gives_the_figures_of_one_rank(one_rank, material, own_module):
    run = train(material, own_module, ranks=2, context_parallel_size=2)
    for name in ("lm loss", "behind loss", "behind share", "grad-norm"):
        assert run.series(name) == pytest.approx(one_rank.series(name), rel=2e-5), name


@pytest.mark.slow
def test_a_score_store_serves_it(one_rank, material, own_module, tmp_path):
    store = {"score_store": tmp_path / "store", "score_dtype": "float32"}
    written = train(material, own_module, score_miss="online", score_store_write=True, **store)
    read = train(material, own_module, reference_load=None, **store)
    assert written.series("behind loss") == read.series("behind loss") == one_rank.series("behind loss")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (
            "behind",
            "invalid choice: 'behind' (choose from ntp, remit, rho1, kd, contrast, "
            "prift, tokenclean, eslm, or package.module:Class)",
        ),
        ("nowhere:Behind", "'nowhere:Behind': the module nowhere cannot be imported"),
        ("behind:Ahead", "'behind:Ahead': the module behind has no Ahead"),
        ("behind:torch", "'behind:torch' is not a class derived from megatron_remit.objectives.base.Objective"),
    ],
)
def test_a_class_that_is_not_there_is_named(objective, expected, own_module):
    program = "import argparse, sys; from megatron_remit.arguments import add_remit_arguments as add; "
    program += "add(argparse.ArgumentParser(usage='')).parse_args(sys.argv[1:])"
    done = run_command(["python", "-c", program, "--objective", objective], cwd=own_module)
    assert done.returncode == 2 and expected in done.output


def test_its_own_check_speaks_before_the_run(material, own_module):
    run = pretrain(1, *material.remit(objective="behind:Behind", behind_margin=-1.0), cwd=own_module, check=False)
    assert run.returncode != 0 and "--behind-margin -1.0: expected 0 or more nats" in run.output
