"""What a run reads and writes is looked at before its first step."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_remit.errors import UserError
from megatron_remit.programs.start_checks import check_reads_and_writes
from tests.conftest import VOCABULARY, write_documents
from tests.ranks import pretrain, run_command
from tests.test_bad_input import parsed

LENGTH = 24  # of a row in the tests' runs


def refused(material, message, *flags, **overrides):
    run = pretrain(1, *material.flags(**overrides), *flags, check=False)
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2 and len(errors) == 1, run.output
    assert message in errors[0] and "iteration        1/" not in run.output


def test_a_folder_without_a_checkpoint_does_not_end_as_a_success(material, tmp_path):
    shape = {"use_checkpoint_args": None, "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    refused(
        material,
        f"--load {tmp_path} with --exit-on-missing-checkpoint: the folder holds no checkpoint",
        "--exit-on-missing-checkpoint",
        load=tmp_path,
        max_position_embeddings=24,
        **shape,
    )


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(material, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        material,
        f"--save {tmp_path}/file/run cannot be written (Not a directory)",
        save=tmp_path / "file/run",
        save_interval=1,
    )


def test_a_run_is_not_saved_into_an_import(material):
    tracker = material.reference / "latest_checkpointed_iteration.txt"
    refused(
        material,
        f"--save {material.reference}: holds an imported model, which a checkpoint of this run would hide",
        save=material.reference,
        save_interval=1,
    )
    assert tracker.read_text().strip() == "release"


def test_an_evaluation_that_was_asked_for_needs_a_validation_split(material):
    refused(material, "--eval-iters 5, but the data flags (--split 100,0,0) leave nothing", eval_iters=5)
    whole = ("--full-validation", "--multiple-validation-sets")
    refused(material, "--full-validation, but the data flags", *whole, eval_iters=None)


def test_megatrons_default_of_100_evaluations_is_no_request(material):
    run = pretrain(1, *material.flags(eval_iters=None))
    assert "note: --split 100,0,0 leaves nothing for validation, so there is none" in run.output
    assert "validation loss" not in run.output


@pytest.mark.parametrize("flag", ["--full-validation", "--multiple-validation-sets"])
def test_whole_validation_and_several_sets_need_each_other(material, flag):
    refused(material, "--full-validation and --multiple-validation-sets work together only", flag)


ROWS = {"math": 7, "prose": 11}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two validation sets, each a single document, so that a row is known: it begins where the one before it ended."""
    folder = tmp_path_factory.mktemp("sets")
    draw = torch.Generator().manual_seed(0)
    for name, rows in ROWS.items():
        tokens = torch.randint(1, VOCABULARY, (rows * LENGTH + 1,), generator=draw)
        torch.save(tokens, folder / f"{name}.pt")
        write_documents(folder / name, [tokens])
    return folder


def mean_nll(model, tokens, rows):
    """By transformers: the mean over the first ``rows`` rows."""
    tokens_RS = torch.stack([tokens[at * LENGTH : (at + 1) * LENGTH + 1] for at in range(rows)])
    with torch.no_grad():
        logits_RSV = model(tokens_RS[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits_RSV.flatten(0, 1), tokens_RS[:, 1:].flatten()).item()


@pytest.mark.parametrize(
    ("ranks", "layout", "rows_at_once"),
    [
        (1, {}, 1),
        (2, {"tensor_model_parallel_size": 2}, 1),
        (2, {"pipeline_model_parallel_size": 2}, 1),
        (2, {"row_seed": 1}, 2),
    ],
    ids=["one rank", "TP2", "PP2", "DP2 with --row-seed"],
)
def test_each_row_of_each_validation_set_counts_once(material, sets, ranks, layout, rows_at_once):
    """Rows that do not fill a last evaluation step are left out, as a data-parallel rank would repeat others."""
    model = AutoModelForCausalLM.from_pretrained(material.policy.parent / "hf_policy").eval()
    flags = material.flags(
        data_path=None, split=None, eval_iters=None, train_data_path=material.corpus, lr=0, eval_interval=3, **layout
    )
    run = pretrain(
        ranks,
        *flags,
        *("--valid-data-path", sets / "math", sets / "prose", "--validation-set-names", "math", "prose"),
        *("--full-validation", "--multiple-validation-sets"),
    )
    for name, rows in ROWS.items():
        expected = mean_nll(model, torch.load(sets / f"{name}.pt"), rows // rows_at_once * rows_at_once)
        for found in run.series(f"lm loss validation-{name}"):
            assert found == pytest.approx(expected, rel=1e-6)


def test_whole_validation_with_virtual_stages_is_refused(material, sets):
    layout = {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1}
    whole = ("--full-validation", "--multiple-validation-sets")
    run = pretrain(2, *material.flags(split="50,50,0", **layout), *whole, check=False)
    assert run.returncode == 2 and "--full-validation with virtual pipeline stages" in run.output


@pytest.mark.parametrize("seed", [[], ["--row-seed", 1]])
def test_a_validation_set_without_a_whole_step_is_refused_by_name(material, tmp_path, seed):
    write_documents(tmp_path / "short", [torch.arange(1, 20)])
    refused(
        material,
        "the valid split has fewer tokens than one row" if seed else "0 rows for validation are fewer than the 1",
        *("--valid-data-path", tmp_path / "short", "--full-validation", "--multiple-validation-sets", *seed),
        **{"data_path": None, "split": None, "eval_iters": None, "train_data_path": material.corpus},
    )


def test_a_corpus_shorter_than_a_row_is_refused_with_fixed_rows_and_leaves_no_record(material, tmp_path):
    write_documents(tmp_path / "short", [torch.arange(1, 20)])
    refused(
        material,
        f"{tmp_path}/short: the train split has fewer tokens than one row",
        data_path=tmp_path / "short",
        row_seed=1,
        save=tmp_path / "run",
        save_interval=1,
    )
    assert not (tmp_path / "run").exists()


COMMANDS = (
    "preprocess --input no.jsonl --output-prefix no/corpus --tokenizer-model no",
    "import --hf no --out no/out",
    "export --megatron no --hf-template no --out no/out",
    "train --yaml-cfg run.yaml",
)
IN_ONE_PROCESS = """
import sys
from megatron_remit.programs.cli import run
for command in sys.argv[1:]:
    sys.argv = ["megatron-remit", *command.split()]
    try:
        run()
    except SystemExit as ended:
        assert ended.code == 2, ended.code
"""


def test_nothing_stands_above_an_error_but_the_error(monkeypatch, tmp_path):
    """In a process of its own: torch and Megatron warn while they are imported, torch of a compiler without a GPU."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    done = run_command(["python", "-c", IN_ONE_PROCESS, *COMMANDS])
    assert done.returncode == 0
    assert [line.split(" ")[0] for line in done.output.splitlines()] == ["error:"] * len(COMMANDS), done.output


def test_a_loss_of_nan_ends_a_run_without_save_by_its_name(material):
    """Megatron would save a checkpoint to None, and end with the TypeError of that."""
    run = pretrain(1, *material.flags(lr=1e38), check=False)
    assert run.returncode not in (0, 1), run.output
    assert "TypeError" not in run.output and "found NaN" in run.output
    assert "the loss or a gradient is NaN or infinite" in run.output and "there is no --save" in run.output


def test_a_first_model_beside_a_load_that_holds_one(material, tmp_path, capsys):
    """Megatron takes the model of --load there, without a word of the other."""

    def check(load, **flags):
        check_reads_and_writes(parsed(material.flags(**{"load": load, "finetune": None} | flags)))

    for flags in ({}, {"finetune": True}):
        with pytest.raises(UserError, match=f"--pretrained-checkpoint {tmp_path} with --load {material.policy}, which"):
            check(material.policy, pretrained_checkpoint=tmp_path, **flags)
    run = tmp_path / "run"
    run.mkdir()
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    with pytest.raises(UserError, match="which holds a model too"):
        check(run, pretrained_checkpoint=material.policy, finetune=True)
    check(run, pretrained_checkpoint=material.policy)
    words = (
        f"note: --pretrained-checkpoint {material.policy} is not read: the run goes on from its checkpoint in --load"
    )
    assert words in capsys.readouterr().err
    check(tmp_path / "new", pretrained_checkpoint=material.policy)
    assert "note:" not in capsys.readouterr().err
