"""The policy's parameter all-gather starts before the reference scores, and changes no bit."""

from tests.ranks import pretrain

ADAM = {"optimizer": "adam", "sgd_momentum": None, "lr": 0.01, "use_distributed_optimizer": True}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def test_the_all_gather_starts_before_scoring_from_the_second_step_on(material):
    overlapped = pretrain(2, *material.remit(**ADAM, **OVERLAP), module="tests.param_gather")
    events = [
        line.split("event of rank 0: ")[1] for line in overlapped.output.splitlines() if "event of rank 0" in line
    ]
    # In the first step the parameters are whole; the last gather is Megatron's own, at the end of the run.
    assert events[:5] == ["score", "gather", "score", "gather", "score"]
    assert "has already been" not in overlapped.output, "Megatron would warn of buckets that are gathered early"
    plain = pretrain(2, *material.remit(**ADAM))
    for name in ("lm loss", "remit loss", "grad-norm"):
        assert overlapped.series(name) == plain.series(name)
