"""Every optimiser and schedule that can be chosen: it learns, its state goes through files, its mistakes are told."""

from contextlib import closing

import pytest
import torch
from training import options, session_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer import adapter, optimizers
from flux_atelier.trainer.config import OptimizerType, Schedule
from flux_atelier.trainer.loop import train

ALL = OptimizerType.__args__
OWN = {
    "prodigy": {"learning_rate": 1.0, "schedule": "constant", "optimizer_arguments": "d0=1e-3"},
    "prodigy_plus": {"learning_rate": 1.0, "schedule": "constant", "optimizer_arguments": "d0=1e-3"},
    "schedule_free": {"schedule": "constant"},
}


def settings(name, **changes):
    source = optimizers.SOURCES[name]
    pytest.importorskip(source.module.split(".")[0])
    if "8bit" in name and not torch.cuda.is_available():
        changes["optimizer_arguments"] = "min_8bit_size=128"
    return options(
        **{"optimizer_type": name, "steps": 6, "save_every": 3, "validate_every": 3} | OWN.get(name, {}) | changes
    )


def weights(session):
    return torch.cat([v.flatten() for v in adapter.state(session.tree).values()])


@pytest.mark.parametrize("name", ALL)
def test_stopped_and_resumed_ends_in_the_same_bytes(name, tmp_path):
    torch.set_num_threads(1)
    chosen = settings(name)
    try:
        whole = session_in(tmp_path / "whole", chosen)
        start = weights(whole).clone()
        list(train(whole))
    except (RuntimeError, NotImplementedError) as error:
        if "8bit" not in name:
            raise
        pytest.skip(f"bitsandbytes has no 8-bit step on this device: {error}")
    assert not torch.equal(weights(whole), start)
    with closing(train(session_in(tmp_path / "parts", chosen))) as steps:
        for step in steps:
            if step.step == 4:
                break
    resumed = session_in(tmp_path / "parts", chosen)
    assert resumed.step == 4
    list(train(resumed))
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", [n for n in ALL if "8bit" not in n])
def test_every_optimiser_learns(name, tmp_path):
    changes = {"steps": 30, "learning_rate": OWN.get(name, {}).get("learning_rate", 3e-3), "validate_every": 30}
    session = session_in(tmp_path, settings(name, **changes, schedule="constant"))
    first, _ = session.validation.loss(session)
    last = [s.validation for s in train(session) if s.validation is not None][-1]
    assert last < first


def test_schedule_free_is_judged_by_its_averaged_weights_and_trains_on_as_it_was(tmp_path):
    chosen = settings("schedule_free", learning_rate=5e-3)
    session = session_in(tmp_path, chosen)
    list(train(session))
    training = weights(session).clone()
    assert session.optimizer.param_groups[0]["train_mode"]
    with session.standing():
        judged = weights(session).clone()
        assert not session.optimizer.param_groups[0]["train_mode"]
    assert not torch.equal(judged, training)
    assert torch.equal(weights(session), training)
    assert session.optimizer.param_groups[0]["train_mode"]


@pytest.mark.parametrize("name", Schedule.__args__)
def test_schedules_are_transformers_with_a_warmup_that_starts_above_zero(name):
    from transformers import get_scheduler

    chosen = options(steps=40, warmup=4, schedule=name, learning_rate=1e-3)
    rates = optimizers.learning_rates(chosen)
    assert rates(0) == pytest.approx(1e-3 / 4)
    assert rates(4) == pytest.approx(1e-3, rel=0.02)
    if name in ("linear", "cosine", "polynomial"):
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1e-3)
        theirs = get_scheduler(name, stand_in, 4, 40).lr_lambdas[0]
        assert [rates(i) for i in range(4, 40)] == [1e-3 * theirs(i) for i in range(4, 40)]


def test_schedule_arguments_act():
    falling = optimizers.learning_rates(options(steps=40, warmup=0, schedule="cosine_with_min_lr"))
    higher = optimizers.learning_rates(
        options(steps=40, warmup=0, schedule="cosine_with_min_lr", schedule_arguments="min_lr_rate=0.5")
    )
    assert falling(40) == pytest.approx(1e-4)
    assert higher(40) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer_arguments": "beta=3"}, "adamw has no argument beta. It knows"),
        ({"optimizer_arguments": "betas=(0.9"}, "cannot be read"),
        ({"optimizer_arguments": "lr=3"}, "lr of adamw has its own option"),
        ({"optimizer_arguments": "betas=(0.9, 7.0)"}, "refused its arguments"),
        ({"optimizer_type": "prodigy", "learning_rate": 1e-4}, "Set learning_rate to 1"),
        ({"learning_rate": 1.0}, "cannot train with"),
        ({"optimizer_type": "schedule_free"}, "Set schedule to constant"),
        (
            {"optimizer_type": "prodigy", "learning_rate": 1.0, "layer_rules": "single_blocks.*: rate=0.5"},
            "one rate for all layers",
        ),
    ],
)
def test_mistakes_are_told(changes, words, tmp_path):
    with pytest.raises(AtelierError, match=words):
        session_in(tmp_path, options(**changes))


def test_an_unknown_schedule_argument_is_told():
    with pytest.raises(AtelierError, match="the schedule cosine has no argument cycles"):
        optimizers.learning_rates(options(schedule="cosine", schedule_arguments="cycles=2"))


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    source = optimizers.Source("no_such_module", "X", "no-such-package")
    monkeypatch.setitem(optimizers.SOURCES, "came", source)
    with pytest.raises(AtelierError, match="pip install no-such-package"):
        session_in(tmp_path, options(optimizer_type="came"))


def test_rates_by_layer_reach_the_optimiser(tmp_path):
    session = session_in(tmp_path, options(steps=1, layer_rules="single_blocks.*: rate=0.25", schedule="constant"))
    (step,) = train(session)
    rates = sorted(g["lr"] for g in session.optimizer.param_groups)
    assert rates == pytest.approx([0.25 * step.learning_rate, step.learning_rate])
