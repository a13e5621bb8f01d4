"""Repeats: by hand, then the law that groups weigh what they should."""

from dataclasses import replace

import numpy as np
import pytest

from flux_atelier.core.dataset.balance import BalanceOptions, balance
from flux_atelier.core.dataset.stored import StoredRow
from flux_atelier.core.errors import AtelierError


def folders(**counts: int) -> list[StoredRow]:
    return [StoredRow(f"{name}/{i}.png", f"{name}{i}", id=f"{name}{i}") for name, n in counts.items() for i in range(n)]


def shown(made) -> dict[str, int]:
    return {group.name: group.shown for group in made.groups}


def test_a_third_as_many_are_shown_three_times():
    made = balance(folders(cats=6, dogs=2), "folder", BalanceOptions())
    assert {own: n for own, n in made.repeats.items() if own.startswith("dogs")} == {"dogs0": 3, "dogs1": 3}
    assert {n for own, n in made.repeats.items() if own.startswith("cats")} == {1}
    cats, dogs = made.groups
    assert (cats.name, cats.pictures, cats.shown, cats.share) == ("cats", 6, 6, 0.5)
    assert (dogs.name, dogs.pictures, dogs.shown, dogs.share) == ("dogs", 2, 6, 0.5)
    assert "once" in cats.reason and "3 repeats" in dogs.reason


def test_what_does_not_divide_is_shared_out():
    made = balance(folders(cats=5, dogs=2), "folder", BalanceOptions())
    assert sorted(n for own, n in made.repeats.items() if own.startswith("dogs")) == [2, 3]
    assert shown(made) == {"cats": 5, "dogs": 5}
    assert "1 have 3, the others 2" in made.groups[1].reason


def test_weights_by_hand():
    made = balance(folders(cats=4, dogs=4), "folder", BalanceOptions(weights="cats=2"))
    assert shown(made) == {"cats": 8, "dogs": 4}
    made = balance(folders(cats=4, dogs=4), "folder", BalanceOptions(weights="cats = 1\ndogs=0.5,"))
    assert shown(made) == {"cats": 8, "dogs": 4}
    # Twice the weight and twice the pictures is balanced as it is.
    assert shown(balance(folders(cats=8, dogs=4), "folder", BalanceOptions(weights="cats=2"))) == {"cats": 8, "dogs": 4}


def test_the_most_bounds_and_says_so():
    made = balance(folders(cats=100, dogs=2), "folder", BalanceOptions(most=10))
    assert made.repeats["dogs0"] == made.repeats["dogs1"] == 10
    assert "50.0" in made.groups[1].reason and "10 is the most" in made.groups[1].reason
    assert set(balance(folders(cats=100, dogs=2), "folder", BalanceOptions(most=1)).repeats.values()) == {1}


def test_only_training_pictures_count():
    given = folders(cats=4, dogs=2)
    given += [replace(row, id=f"v{row.id}", split="validation") for row in folders(cats=9)]
    made = balance(given, "folder", BalanceOptions())
    assert shown(made) == {"cats": 4, "dogs": 4}
    assert all(n == 1 for own, n in made.repeats.items() if own.startswith("v")) and len(made.repeats) == len(given)
    assert shown(balance(given, "split", BalanceOptions())) == {"validation": 9, "train": 9}


def test_copies_count_and_nothing_gives_nothing():
    given = folders(cats=4, dogs=2)
    given += [replace(row, id=f"{row.id}+1", parent=row.id) for row in given if row.id.startswith("dogs")]
    assert set(balance(given, "folder", BalanceOptions()).repeats.values()) == {1}
    assert balance([], "folder", BalanceOptions()).groups == ()
    assert balance([replace(row, split="test") for row in given], "folder", BalanceOptions()).groups == ()


@pytest.mark.parametrize("seed", range(20))
def test_groups_weigh_what_they_should(seed):
    rng = np.random.default_rng(seed)
    counts = {f"g{i}": int(rng.integers(1, 200)) for i in range(6)}
    weights = {name: float(rng.integers(1, 8)) / 2 for name in counts}
    options = BalanceOptions(weights=", ".join(f"{n}={w}" for n, w in weights.items()), most=1000, seed=seed)
    given = folders(**counts)
    made = balance(given, "folder", options)
    total = sum(weights.values())
    for group in made.groups:
        own = [made.repeats[f"{group.name}{i}"] for i in range(group.pictures)]
        assert sum(own) == group.shown and max(own) - min(own) <= 1 and min(own) >= 1
        assert abs(group.share - weights[group.name] / total) < 0.01
    assert sum(group.share for group in made.groups) == pytest.approx(1)
    assert balance(given[::-1], "folder", options) == made


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ("cast=2", "Did you mean cats"),
        ("cats=0", "above 0"),
        ("cats=-1", "above 0"),
        ("cats=many", "'many'"),
        ("cats", "cats=2"),
        ("cats=inf", "above 0"),
    ],
)
def test_bad_weights_are_told(weights, word):
    with pytest.raises(AtelierError, match=word):
        balance(folders(cats=1, dogs=2), "folder", BalanceOptions(weights=weights))
