"""The store: rows known by their bytes, choices that a scan does not touch, undo, several threads and processes."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from flux_atelier.core.dataset.store import Store, score_column
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.errors import AtelierError

A, B, C = "a" * 32, "b" * 32, "c" * 32


def row(path: str, digest: str, **more) -> StoredRow:
    return StoredRow(path, digest, stamp="1:1", width=40, height=20, format="PNG", measured=1, **more)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "set" / "atelier.db") as opened:
        yield opened


def test_a_row_comes_back_as_it_was_put(store):
    put = row(
        "x/ä.png",
        A,
        notes=("alpha: laid on white",),
        scores={"sharpness": 0.5},
        hashes={"dct": "ffffffffffffffff"},
        companions={"mask": {"path": "x/ä.mask.png", "digest": B}},
        columns={"artist": "Monet"},
        split="validation",
        repeats=3,
        tags=("water", "ägypten"),
        boxes=({"label": "face", "x": 1, "y": 2, "w": 3, "h": 4, "score": 0.5},),
        crop=(0, 0, 16, 16),
        ops=({"op": "flip"},),
        captions=(
            WrittenCaption("line one\nline two ü", origin="file"),
            WrittenCaption("b", "model", "joy", "p", 7, 0.5),
        ),
    )
    ids = store.put([put])
    assert ids == ["a" * 16]
    assert store.rows(ids) == [replace(put, id=ids[0])]
    assert store.score_names() == ["sharpness"]


def test_scores_are_columns_that_follow_what_a_scan_finds(store):
    odd = 'it\'s "odd"'
    names = [score_column(name) for name in ("sharpness", odd)]
    found = [
        row("a.png", A, scores={"sharpness": 0.25, odd: 2.0, "row": 7.0}),
        row("b.png", B, scores={"Sharpness": 0.5}),
    ]
    one, other, _ = [store.put([each])[0] for each in (*found, row("c.png", C))]
    assert store.ids(f"s.{names[0]} >= ?", (0.25,), f"s.{names[0]} DESC") == [other, one]
    assert store.ids(f"s.{names[1]} = 2") == [one]
    assert store.ids(f"s.{names[0]} IS NULL") == ["c" * 16]
    assert store.score_names() == [odd, "row", "sharpness"]
    store.put([row("a.png", A, scores={odd: 3.0})])
    assert store.ids(f"s.{names[0]} IS NOT NULL") == [other]
    assert store.rows([one])[0].scores == {odd: 3.0}
    store.put([row("a.png", A)])
    assert store.ids(f"s.{names[1]} IS NOT NULL") == []


def test_all_rows_are_listed_without_reading_their_scores(store):
    query = 'EXPLAIN QUERY PLAN SELECT r.id FROM rows r LEFT JOIN scores s ON s."of row" = r.number'
    query += " WHERE r.gone = 0 AND r.fault IS NULL AND (1) ORDER BY r.path, r.id"
    plan = [step["detail"] for step in store.db.execute(query)]
    assert len(plan) == 1 and "INDEX rows_readable" in plan[0]


def test_the_same_bytes_twice_are_two_rows_with_stable_ids(store):
    first, second = store.put([row("a.png", A), row("b.png", A)])
    assert first == "a" * 16 and second != first
    assert store.put([row("a.png", A), row("b.png", A)]) == [first, second]
    assert store.ids() == [first, second]


def test_a_renamed_file_keeps_its_row_and_a_changed_one_gets_another(store):
    (own,) = store.put([row("old.png", A)])
    store.decide([own], "keep", "human")
    store.caption({own: [WrittenCaption("mine")]}, "human")
    store.leave(["old.png"])
    assert store.ids() == []
    assert store.put([row("new.png", A)]) == [own]
    assert [(r.path, r.decision) for r in store.rows([own])] == [("new.png", "keep")]
    (other,) = store.put([row("new.png", B)])
    assert other == "b" * 16 and store.ids() == [other]
    found = store.rows([other])[0]
    assert found.decision is None
    assert [c.text for c in found.captions] == ["mine"]


def test_a_scan_does_not_touch_what_was_chosen(store):
    (own,) = store.put([row("a.png", A, tags=("file",), captions=(WrittenCaption("from file", origin="file"),))])
    store.edit({own: {"split": "test", "stars": 4, "tags": ["mine"]}}, "human")
    store.caption({own: [WrittenCaption("typed")]}, "human")
    store.put([row("a.png", A, split="train", captions=(WrittenCaption("from file, later", origin="file"),))])
    found = store.rows([own])[0]
    assert (found.split, found.stars, found.tags) == ("test", 4, ("mine",))
    assert [c.text for c in found.captions] == ["typed"]


def test_a_model_never_replaces_what_a_human_wrote(store):
    one, two = store.put([row("a.png", A, captions=(WrittenCaption("human"),)), row("b.png", B)])
    texts = [WrittenCaption("machine", "model", "joy", "p1")]
    store.caption({one: texts, two: texts}, "Caption Dataset")
    assert [[c.text for c in r.captions] for r in store.rows([one, two])] == [["human", "machine"], ["machine"]]
    later = [WrittenCaption("machine 2", "model", "joy", "p2")]
    store.caption({one: later, two: later}, "Caption Dataset")
    assert [[c.text for c in r.captions] for r in store.rows([one, two])] == [["human", "machine 2"], ["machine 2"]]


def test_undo_takes_back_every_edit_in_turn(store):
    ids = store.put([row("a.png", A), row("b.png", B, captions=(WrittenCaption("first"),))])
    states = [store.rows(ids)]
    for i in range(50):
        if i % 3 == 0:
            store.decide(ids, ("keep", "reject")[i % 2], "human", f"reason {i}")
        elif i % 3 == 1:
            store.caption({ids[1]: [WrittenCaption(f"text {i}")]}, "human")
        else:
            store.edit({ids[0]: {"crop": [0, 0, i, i], "tags": [f"t{i}"]}}, "Smart Crop", "crop")
        states.append(store.rows(ids))
    assert len({repr(s) for s in states}) == 51
    for state in reversed(states[:-1]):
        assert store.undo() in ("keep", "reject", "caption", "crop")
        assert store.rows(ids) == state
    assert store.undo() is None


def test_a_decision_says_who_and_when(store):
    ids = store.put([row("a.png", A)])
    before = store.revision
    assert store.decide(ids, "reject", "Curate Dataset", "blurred") == before + 1
    found = store.rows(ids)[0]
    assert (found.decision, found.reason, found.decided_by) == ("reject", "blurred", "Curate Dataset")
    assert found.decided_at.startswith("20")
    store.decide(ids, None, "human")
    assert (store.rows(ids)[0].decision, store.rows(ids)[0].reason) == (None, None)


def test_only_what_a_human_edits_is_counted(store):
    assert store.edited == 0
    ids = store.put([row("a.png", A)])
    store.set_meta("root", "/pictures")
    store.decide(ids, "reject", "Filter Dataset")
    store.caption({ids[0]: [WrittenCaption("machine", "model")]}, "Caption Dataset")
    assert store.edited == 0
    store.decide(ids, "keep", "human")
    store.edit({ids[0]: {"stars": 3}}, "human")
    store.caption({ids[0]: [WrittenCaption("mine")]}, "human")
    assert store.edited == 3
    assert [store.undo() for _ in range(3)] == ["caption", "edit", "keep"]
    assert store.edited == 6  # undone is changed again
    store.undo()
    assert store.edited == 6
    with Store(store.path) as again:
        assert again.edited == 6


@pytest.mark.parametrize("values", [{"path": "/etc/passwd"}, {"decision": "maybe"}, {"gone": 1}])
def test_what_may_not_be_chosen_is_refused(store, values):
    ids = store.put([row("a.png", A)])
    before = store.revision, store.rows(ids)
    with pytest.raises(AtelierError, match="A row has no"):
        store.edit({ids[0]: values}, "human")
    assert (store.revision, store.rows(ids)) == before


def test_a_failed_edit_changes_nothing(store):
    ids = store.put([row("a.png", A), row("b.png", B)])
    before = store.revision, store.rows(ids)
    with pytest.raises(TypeError):
        store.edit({ids[0]: {"stars": 1}, ids[1]: {"crop": object()}}, "human")
    assert (store.revision, store.rows(ids)) == before
    assert store.undo() is None


def test_rows_come_in_the_order_asked_and_faults_are_named(store):
    ids = store.put([row("a.png", A), row("b.png", B), row("c.png", C, fault="cut short")])
    assert [r.id for r in store.rows([ids[1], "nobody", ids[0]])] == [ids[1], ids[0]]
    assert store.ids() == ids[:2]
    assert store.faults() == [("c.png", "cut short")]


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("nothing of the kind" * 100)
    with pytest.raises(AtelierError, match="is no dataset store"):
        Store(text)
    assert text.read_text() == "nothing of the kind" * 100
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE things (x)")
    db.close()
    with pytest.raises(AtelierError, match=r"version 2 .it says 0"):
        Store(other)
    with sqlite3.connect(other) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(AtelierError, match="it says 99"):
        Store(other)
    with pytest.raises(AtelierError, match="There is no dataset store"):
        Store(tmp_path / "absent.db", made=False)
    assert not (tmp_path / "absent.db").exists()


def test_threads_write_beside_each_other_and_lose_nothing(store):
    ids = store.put([row(f"{i}.png", f"{i:032x}") for i in range(0, 40 << 68, 1 << 68)])
    before = store.revision
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda own: store.edit({own: {"stars": 5}}, "human"), ids))
    assert store.revision == before + 40
    assert [r.stars for r in store.rows(ids)] == [5] * 40


def test_a_process_that_is_killed_in_a_commit_leaves_whole_rows(store, tmp_path):
    ids = store.put([row("a.png", A)])
    code = f"""
import os, sqlite3
db = sqlite3.connect({str(store.path)!r}, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE rows SET stars = 1")
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert store.rows(ids)[0].stars is None
    store.edit({ids[0]: {"stars": 2}}, "human")
    with Store(store.path) as again:
        assert again.rows(ids)[0].stars == 2


def test_undo_leaves_what_nodes_found_meanwhile(tmp_path):
    with Store(tmp_path / "atelier.db") as store:
        (own,) = store.put([StoredRow("a.png", "1" * 32, captions=(WrittenCaption("sea", origin="file"),))])
        store.decide([own], "reject", "human")
        store.caption({own: [WrittenCaption("my sea")]}, "human")
        store.edit({own: {"boxes": ({"label": "face"},), "split": "test"}}, "Find Faces", undoable=False)
        store.caption({own: [WrittenCaption("a sea", "model", "joy")]}, "joy", undoable=False)
        assert [store.undo(), store.undo(), store.undo()] == ["caption", "reject", None]
        row = store.rows([own])[0]
        assert (row.decision, row.split, row.boxes) == (None, "test", ({"label": "face"},))
        assert [c.text for c in row.captions] == ["sea", "a sea"]
