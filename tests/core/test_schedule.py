"""Strength schedules over the noise level, by hand."""

import pytest

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.schedule import parse_schedule


@pytest.mark.parametrize(
    ("text", "interpolation", "sigma", "strength"),
    [
        ("0.5", "linear", 0.3, 0.5),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 1.0, 0.0),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 0.85, 0.5),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 0.7, 1.0),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 0.4, 1.0),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 0.1, 0.75),
        ("1: 0, 0.7: 1, 0.2: 1, 0: 0.5", "linear", 0.0, 0.5),
        ("0: 0.5\n1: 0", "linear", 0.5, 0.25),
        ("0.8: 2, 0.2: -2", "linear", 0.9, 2.0),
        ("0.8: 2, 0.2: -2", "linear", 0.1, -2.0),
        ("1: 0, 0: 1", "smooth", 0.75, 0.1464466),
        ("1: 0, 0: 1", "smooth", 0.5, 0.5),
        ("1: 0, 0.5: 1", "step", 0.51, 0.0),
        ("1: 0, 0.5: 1", "step", 0.5, 1.0),
        ("1: 0, 0.5: 1", "step", 0.2, 1.0),
    ],
)
def test_schedules_by_hand(text, interpolation, sigma, strength):
    assert parse_schedule(text, interpolation).at(sigma) == pytest.approx(strength)


def test_per_cents_go_through_the_model():
    schedule = parse_schedule("0%: 0, 50%: 1, 100%: 0")
    assert schedule.percent
    turned = schedule.in_sigmas(lambda share: (1 - share) ** 0.5)
    assert not turned.percent
    assert turned.at(0.5**0.5) == pytest.approx(1)
    assert turned.at(1.0) == turned.at(0.0) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'nothing', which is no point"),
        ("1: a", "'1: a', which is no point"),
        ("1 0", "no point"),
        ("1: 0, 50%: 1", "sigmas and per cents"),
        ("-1: 0", "point at -1"),
        ("120%: 0", "point at 120"),
        ("1: 0, 1.0: 1", "two points at 1"),
        ("nan: 1", "no point"),
    ],
)
def test_wrong_schedules_are_told(text, words):
    with pytest.raises(AtelierError, match=words):
        parse_schedule(text)
