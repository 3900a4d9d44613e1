"""The NLL of the targets and its gradient, on the torch path with one rank, against float64 and against Megatron."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_remit import cpu
from megatron_remit.kernels.vocab_parallel_logprob import (
    Shard,
    choose_implementation,
    vocab_parallel_nll,
)
from tests.kernels.cases import (
    DTYPES,
    adversarial,
    adversarial_targets,
    assert_close,
    computed,
    draw,
    float64_truth,
)
from tests.ranks import free_port

cpu.install()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sequence=some.integers(1, 9),
    batch=some.integers(1, 4),
    vocabulary=some.integers(1, 700),
    padding=some.integers(0, 130),
    dtype=some.sampled_from(DTYPES),
    seed=some.integers(0, 2**31),
    ignored=some.sampled_from([0.0, 0.3, 1.0]),
    in_place=some.booleans(),
)
def test_any_shape_gives_what_float64_gives(sequence, batch, vocabulary, padding, dtype, seed, ignored, in_place):
    drawn = draw(sequence, batch, vocabulary + padding, vocabulary, dtype, seed, ignored)
    found = computed("torch", *drawn, vocabulary, in_place=in_place)
    assert_close(found, float64_truth(*drawn, vocabulary), dtype)
    assert found[1].dtype == dtype and found[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", adversarial())
def test_adversarial_logits_give_what_float64_gives(name, dtype):
    logits, targets = adversarial()[name].to(dtype), adversarial_targets(name)
    grad_output = torch.linspace(-1, 2, 6).view(3, 2)
    found = computed("torch", logits, targets, grad_output, logits.size(-1))
    assert_close(found, float64_truth(logits, targets, grad_output, logits.size(-1)), dtype)


@pytest.fixture(scope="module")
def one_rank_group():
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [0, 5])
def test_megatrons_own_cross_entropy_gives_the_same_bits(dtype, padding, one_rank_group):
    logits, targets, grad_output = draw(7, 3, 515 + padding, 515, dtype, ignored=0.0)
    leaf = logits.clone().requires_grad_()
    masked = leaf.clone()
    masked[..., 515:] = float("-inf")
    expected = vocab_parallel_cross_entropy(masked, targets, tp_group=one_rank_group)
    expected.backward(grad_output)
    found = computed("torch", logits, targets, grad_output, 515, one_rank_group)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], leaf.grad)


def test_logits_that_repeat_have_the_closed_form_of_megatrons_own_test():
    """Four times 0..7: the sum of exponentials is 4 * (e^8 - 1) / (e - 1), the target's logit its id modulo 8."""
    logits = torch.arange(8.0).repeat(16, 1, 4)
    targets = torch.arange(0, 32, 2).view(16, 1)
    expected = torch.log(4 * torch.tensor(8.0).expm1() / torch.tensor(1.0).expm1()) - targets % 8
    torch.testing.assert_close(vocab_parallel_nll(logits, targets, 32), expected)


def test_gradcheck():
    logits, targets, _ = draw(2, 3, 11, 9, torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: vocab_parallel_nll(leaf, targets, 9), (logits,))


def test_rows_need_not_lie_one_after_another():
    wide, targets, grad_output = draw(6, 4, 300, 290)
    for logits in (wide.transpose(0, 1).contiguous().transpose(0, 1), wide[::2, 1:3, :295], wide[..., ::2]):
        cut = [part[: logits.size(0), : logits.size(1)] for part in (targets, grad_output)]
        cut[0] = cut[0].clamp(max=logits.size(-1) - 11)
        found = computed("torch", logits, *cut, logits.size(-1) - 10)
        assert_close(found, float64_truth(logits, *cut, logits.size(-1) - 10), torch.float32)


def test_grad_output_may_be_expanded_or_transposed():
    logits, targets, _ = draw(5, 3, 40, 40)
    expanded = torch.tensor(0.25).expand(5, 3)
    transposed = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).t()
    for grad_output in (expanded, transposed):
        found = computed("torch", logits, targets, grad_output, 40)
        assert_close(found, float64_truth(logits, targets, grad_output, 40), torch.float32)


def test_ignored_rows_have_no_loss_and_no_gradient_whatever_their_logits():
    logits, _, grad_output = draw(4, 2, 30, 30)
    logits[0] = float("nan")
    logits[1] = float("-inf")
    nll, gradient = computed("torch", logits.nan_to_num(9.0, neginf=-9.0), torch.full((4, 2), -100), grad_output, 30)
    assert not nll.any() and not gradient.any()
    leaf = logits.requires_grad_()
    nll = vocab_parallel_nll(leaf, torch.full((4, 2), -100), 30)
    nll.sum().backward()
    assert not nll.any() and not leaf.grad.any()


def test_a_target_outside_the_vocabulary_is_an_infinite_loss_and_not_a_wrong_number():
    logits, _, _ = draw(1, 3, 40, 35)
    targets = torch.tensor([[35, 40, -1]])
    assert vocab_parallel_nll(logits, targets, 35).eq(float("inf")).all()


def test_padding_columns_take_no_probability_and_get_no_gradient():
    logits, targets, grad_output = draw(4, 2, 50, 40)
    other = logits.clone()
    other[..., 40:] = 1e4
    found, again = (computed("torch", part, targets, grad_output, 40) for part in (logits, other))
    assert torch.equal(found[0], again[0]) and torch.equal(found[1], again[1])
    assert not found[1][..., 40:].any()


def test_the_same_input_gives_the_same_bits():
    drawn = draw(8, 2, 999, 990, torch.bfloat16)
    first, second = (computed("torch", *drawn, 990) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_in_place_the_gradient_is_in_the_logits_memory_and_a_second_backward_is_refused():
    logits, targets, _ = draw(3, 2, 20, 20)
    own = logits.requires_grad_() * 1
    nll = vocab_parallel_nll(own, targets, 20, in_place=True)
    gradient = torch.autograd.grad(nll.sum(), own, retain_graph=True)[0]
    assert gradient.data_ptr() == own.data_ptr()
    with pytest.raises(RuntimeError, match="in_place=False"):
        nll.sum().backward()


def test_a_shard_knows_its_tokens():
    assert Shard.of(520, 515, None) == Shard(0, 515)
    assert Shard.of(500, 515, None) == Shard(0, 500)


def test_auto_is_torch_on_a_cpu_and_a_name_stays_a_name():
    assert choose_implementation("auto", torch.device("cpu")) == "torch"
    assert choose_implementation("auto", torch.device("cuda")) == "triton"
    assert choose_implementation("megatron", torch.device("cuda")) == "megatron"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "cuda"}, "'cuda', expected one of"),
        ({"targets_SB": torch.zeros(2, 3, dtype=torch.int64)}, r"\(3, 2, 9\) and targets \(2, 3\)"),
        ({"targets_SB": torch.zeros(3, 2, dtype=torch.int32)}, "torch.int32, expected int64"),
        ({"logits_SBV": torch.zeros(3, 2, 9, dtype=torch.float64), "implementation": "triton"}, "torch.float64"),
    ],
)
def test_input_that_does_not_fit_is_refused(change, message):
    good = {"logits_SBV": torch.zeros(3, 2, 9), "targets_SB": torch.zeros(3, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        vocab_parallel_nll(**good | {"vocabulary_size": 9} | change)
