"""Divergence: nothing runaway reaches the weights, nothing is counted as zero, and the run says what it did."""

import pytest
import torch
from training import options, session_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer import adapter
from flux_atelier.trainer.guard import LEARNING, Guard
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.state import newest_state


def calm(guard):
    for i in range(LEARNING):
        assert guard.objection(1.0 + i % 3, 0.5) is None


def test_a_loss_that_is_not_finite_is_never_taken():
    guard = Guard(5, 2)
    assert "nan" in guard.objection(float("nan"), 1.0)
    assert "inf" in guard.objection(1.0, float("inf"))
    assert not guard.losses


def test_a_runaway_is_told_from_the_ups_and_downs_of_noise_levels():
    guard = Guard(5, 2)
    calm(guard)
    assert guard.objection(15.0, 0.5) is None
    assert "times its median" in guard.objection(50.0, 0.5)
    assert "gradient's norm" in guard.objection(2.0, 100.0)


def test_a_young_run_may_be_wild():
    guard = Guard(5, 2)
    assert guard.objection(0.01, 0.01) is None
    assert guard.objection(500.0, 900.0) is None


def test_skips_are_counted_until_there_are_too_many_in_a_row():
    guard = Guard(2, 1)
    assert [guard.skip() for _ in range(3)] == [False, False, True]
    guard.objection(1.0, 1.0)
    assert not guard.skip()
    assert guard.skipped == 4
    assert guard.roll_back()
    assert guard.rate_factor == 0.5
    assert not guard.roll_back()


def test_its_memory_goes_through_a_state():
    guard, again = Guard(2, 3), Guard(2, 3)
    calm(guard)
    guard.skip()
    guard.roll_back()
    again.restore(guard.facts())
    assert again.facts() == guard.facts()


def broken_between(session, first, last):
    """A hook that breaks the gradients of some optimiser steps, counted as they happen."""
    happened = []

    def hook(grad):
        return grad * float("nan") if first <= session.step + 1 <= last and len(happened) < 100 else grad

    session.parameters[0].register_hook(hook)
    return happened


def test_one_bad_step_is_skipped_told_and_trained_over(tmp_path):
    session = session_in(tmp_path, options())
    broken_between(session, 4, 4)
    steps, before = [], None
    for step in train(session):
        if step.step == 3:
            before = {k: v.clone() for k, v in adapter.state(session.tree).items()}
        if step.step == 4:
            assert all(torch.equal(v, before[k]) for k, v in adapter.state(session.tree).items())
        steps.append(step)
    assert [s.step for s in steps if s.skipped] == [4]
    assert "gradient's norm is nan" in steps[3].note
    assert session.run.notes() == [{"step": 4, "note": steps[3].note}]
    assert session.run.metrics()[3]["skipped"] is True
    assert session.guard.skipped == 1


def test_too_many_roll_back_with_half_the_rate_and_the_run_ends(tmp_path):
    session = session_in(tmp_path, options(steps=8, skip_limit=1, schedule="constant", warmup=0))

    def hook(grad):
        return grad * float("nan") if session.step in (4, 5) and not session.guard.rolled_back else grad

    session.parameters[0].register_hook(hook)
    steps = list(train(session))
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    assert "back at step 4 with 0.5 of the learning rate" in steps[5].note
    assert steps[-1].learning_rate == pytest.approx(0.5 * steps[0].learning_rate)
    assert [r["step"] for r in session.run.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert newest_state(session.run.checkpoints).facts["guard"]["rolled_back"] == 1


def test_a_run_that_keeps_running_away_stops_with_the_cause_and_the_last_good_state(tmp_path):
    session = session_in(tmp_path, options(skip_limit=0, rollbacks=1))
    broken_between(session, 5, 100)
    with pytest.raises(
        AtelierError, match=r"ran away: the gradient's norm is nan at step 5, after 2 skipped .* 1 roll-backs"
    ):
        list(train(session))
    assert newest_state(session.run.checkpoints).step == 4
    assert all(v.isfinite().all() for v in newest_state(session.run.checkpoints).adapter.values())


def test_memory_that_runs_out_at_the_first_step_is_stepped_down_once_and_told(tmp_path):
    session = session_in(tmp_path, options(gradient_checkpointing=0.0, steps=3))
    straight = session_in(tmp_path / "straight", options(gradient_checkpointing=0.25, steps=3))
    asked, real = [], session.tree.forward

    def forward(*args, **kwargs):
        asked.append(len(session.checkpointed))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(*args, **kwargs)

    session.tree.forward = forward
    steps = list(train(session))
    assert "out of memory, so from now on 25% of the blocks" in steps[0].note
    assert session.setting.share == 0.25
    list(train(straight))
    assert all(
        torch.equal(a, b)
        for a, b in zip(adapter.state(session.tree).values(), adapter.state(straight.tree).values(), strict=True)
    )


def test_memory_that_runs_out_twice_is_an_error_that_loses_nothing(tmp_path):
    session = session_in(tmp_path, options(steps=3))

    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    session.tree.forward = forward
    with pytest.raises(AtelierError, match=r"too little memory .* Lower the resolution"):
        list(train(session))
    assert newest_state(session.run.checkpoints) is None
