"""Splits: by hand, then the laws: groups whole, strata even, nobody moves."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flux_atelier.core.dataset.split import SplitOptions, split_rows, split_table, strata
from flux_atelier.core.dataset.stored import StoredRow
from flux_atelier.core.errors import AtelierError
from flux_atelier.core.options import parse


def rows(count: int, start: int = 0, **values) -> list[StoredRow]:
    return [StoredRow(f"f/{i}.png", f"d{i}", id=f"r{i}", **values) for i in range(start, start + count)]


def styles(count: int, start: int = 0, seed: int = 0) -> list[StoredRow]:
    """Rows of styles of very different sizes, as art collections have them."""
    names = np.random.default_rng(seed).zipf(1.3, count) % 27
    return [replace(row, columns={"style": int(n)}) for row, n in zip(rows(count, start), names, strict=True)]


def test_shares_are_met_to_the_picture():
    made = split_rows(rows(100), SplitOptions(validation=0.1, test=0.05))
    assert Counter(made.values()) == {"train": 85, "validation": 10, "test": 5}
    assert Counter(split_rows(rows(7), SplitOptions(validation=0.2)).values()) == {"train": 6, "validation": 1}
    assert set(split_rows(rows(7), SplitOptions(validation=0)).values()) == {"train"}
    assert split_rows([], SplitOptions()) == {}
    assert split_rows(rows(1), SplitOptions()) == {"r0": "train"}


def test_order_does_not_matter_and_the_seed_does():
    made = split_rows(rows(200), SplitOptions())
    assert split_rows(rows(200)[::-1], SplitOptions()) == made
    assert split_rows(rows(200), SplitOptions(seed=1)) != made
    renamed = [replace(row, path=f"g/{row.path}") for row in rows(200)]
    assert split_rows(renamed, SplitOptions()) == made


def test_many_small_strata_still_add_up():
    """27 strata of 14: a tenth of each is 1.4, of all 38; each has 1 or 2."""
    given = [replace(row, columns={"s": i % 27}) for i, row in enumerate(rows(378))]
    options = SplitOptions(by="column:s")
    table = split_table(given, split_rows(given, options), "column:s")
    held = [counts["validation"] for counts in table.values()]
    assert sum(held) == 38 and set(held) == {1, 2}


def test_each_stratum_has_its_shares():
    given = styles(5000)
    options = SplitOptions(validation=0.1, test=0.1, by="column:style")
    table = split_table(given, split_rows(given, options), "column:style")
    assert sum(c["test"] for c in table.values()) == 500
    for counts in table.values():
        for split in ("validation", "test"):
            assert abs(counts[split] - 0.1 * sum(counts.values())) < 1 + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_more_moves_nobody(seed):
    """With the earlier split known: 0 rows move, and strata of 50 and more stay within 2 %."""
    first, more = styles(3000, seed=seed), styles(300, 3000, seed=seed + 100)
    rng = np.random.default_rng(seed)
    options = SplitOptions(validation=0.1, test=0.1, by="column:style", seed=seed)
    by_style = {}
    for row in first:
        by_style.setdefault(row.columns["style"], []).append(row.id)
    groups = [list(rng.choice(by_style[first[i].columns["style"]], 3)) for i in range(200)]
    known = split_rows(first, options, groups)
    made = split_rows(first + more, options, groups, known)
    assert {own: made[own] for own in known} == known
    for given, splits in ((first, known), (first + more, made)):
        for counts in split_table(given, splits, options.by).values():
            total = sum(counts.values())
            if total >= 50:
                assert all(abs(counts[split] / total - 0.1) <= 0.02 + 1e-9 for split in ("validation", "test"))
    # Where a fifth of the later pictures are duplicates of earlier ones, they follow them, and still nobody moves.
    joined = [[*group, *([f"r{3000 + i}"] if i < 60 else [])] for i, group in enumerate(groups)]
    followed = split_rows(first + more, options, joined, known)
    assert {own: followed[own] for own in known} == known
    assert all(len({followed[own] for own in group}) == 1 for group in joined)
    assert abs(Counter(followed.values())["validation"] / 3300 - 0.1) < 0.005


def test_groups_over_several_strata_overfill_none():
    given = styles(3000)
    groups = [[f"r{n}" for n in np.random.default_rng(i).choice(3000, 3)] for i in range(200)]
    options = SplitOptions(validation=0.1, test=0.1, by="column:style")
    made = split_rows(given, options, groups)
    assert all(len({made[own] for own in group}) == 1 for group in groups)
    for counts in split_table(given, made, options.by).values():
        total = sum(counts.values())
        assert all(abs(counts[split] - 0.1 * total) <= max(1.5, 0.012 * total) for split in ("validation", "test"))


def test_without_what_was_known_only_the_borders_move():
    first = rows(3000)
    before, after = split_rows(first, SplitOptions()), split_rows(first + rows(300, 3000), SplitOptions())
    assert sum(before[own] != after[own] for own in before) <= 30


def test_groups_and_equal_bytes_never_part():
    rng = np.random.default_rng(0)
    given = rows(400)
    given += [StoredRow(f"copy/{i}.png", f"d{i}", id=f"c{i}") for i in range(50)]
    groups = [[f"r{n}" for n in rng.choice(400, int(rng.integers(2, 8)), replace=False)] for _ in range(60)]
    made = split_rows(given, SplitOptions(validation=0.2, test=0.1), groups)
    assert all(len({made[own] for own in group}) == 1 for group in groups)
    assert all(made[f"r{i}"] == made[f"c{i}"] for i in range(50))
    assert abs(Counter(made.values())["validation"] / 450 - 0.2) <= 0.02


def test_overlapping_groups_are_one_and_foreign_ids_are_passed_over():
    made = split_rows(
        rows(40), SplitOptions(validation=0.3), [["r0", "r1"], ["r1", "r2"], ["r2", "gone"], ["gone"], []]
    )
    assert made["r0"] == made["r1"] == made["r2"]


def test_a_group_larger_than_its_part_stays_in_training():
    made = split_rows(rows(100), SplitOptions(), [[f"r{i}" for i in range(60)]])
    assert {made[f"r{i}"] for i in range(60)} == {"train"}
    assert Counter(made.values())["validation"] == 10


def test_joined_splits_go_to_what_training_has_seen():
    known = {"r0": "test", "r1": "train", "r2": "test", "r3": "validation"}
    made = split_rows(rows(20), SplitOptions(), [["r0", "r1", "r4"], ["r2", "r3"]], known)
    assert made["r0"] == made["r1"] == made["r4"] == "train"
    assert made["r2"] == made["r3"] == "validation"


def test_variants_have_their_rows_split_and_count_for_nothing():
    given = rows(50)
    copies = [replace(row, id=f"{row.id}+{n}", parent=row.id) for row in given for n in (1, 2)]
    made = split_rows(given + copies, SplitOptions(validation=0.2))
    assert {own: made[own] for own in (row.id for row in given)} == split_rows(given, SplitOptions(validation=0.2))
    assert all(made[copy.id] == made[copy.parent] for copy in copies)
    orphans = split_rows(copies, SplitOptions(validation=0.2))
    assert all(orphans[f"r{i}+1"] == orphans[f"r{i}+2"] for i in range(50))
    assert split_table(given + copies, made)[""] == {"train": 40, "validation": 10, "test": 0}


def test_strata_by_hand():
    a = StoredRow(
        "cats/a.png", "1", width=1024, height=1024, tags=("Portrait", "x"), columns={"artist": "Monet"}, format="PNG"
    )
    b = StoredRow("b.jpg", "2", width=2000, height=1000, crop=(0, 0, 500, 500), format="JPEG", split="test")
    assert strata([a, b], "") == ["", ""]
    assert strata([a, b], "folder") == ["cats", ""]
    assert strata([a, b], "aspect") == ["1024x1024", "1024x1024"]
    assert strata([replace(b, crop=None)], "aspect") == ["1440x720"]
    assert strata([a, b], "split") == ["train", "test"]
    assert strata([a, b], "format") == ["PNG", "JPEG"]
    assert strata([a, b], "column:artist") == ["Monet", ""]
    assert strata([a, b], "tag:landscape, portrait") == ["portrait", ""]
    assert strata([], "column:artist") == []


@pytest.mark.parametrize(
    ("by", "word"),
    [("foldr", "Did you mean folder"), ("column:artit", "artist"), ("column:", "column:<name>"), ("tag:dgo", "dog")],
)
def test_unknown_strata_are_told(by, word):
    given = [StoredRow("a.png", "1", id="a", tags=("dog",), columns={"artist": "Monet"})]
    with pytest.raises(AtelierError, match=word):
        split_rows(given, SplitOptions(by=by))


def test_wrong_shares_and_splits_are_told():
    with pytest.raises(AtelierError, match="less than 5 %"):
        parse(SplitOptions, {"validation": 0.9, "test": 0.2}, "Split")
    with pytest.raises(AtelierError, match="'dev'"):
        split_rows(rows(2), SplitOptions(), known={"r0": "dev"})
