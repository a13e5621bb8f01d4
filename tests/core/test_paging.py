"""Kept views and what a gallery asks of them: pages beside plain Python, orders that outlive decisions, thumbs, groups."""

import gzip
import json
import os
import random
import threading
import time

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset.changes import Cut, Decide, Rate, Tag, Write, change, undo
from flux_atelier.core.dataset.kept_view import NEWEST, Absent, keep_view, kept_file, open_view
from flux_atelier.core.dataset.paging import Asked, Pending, Stores, words_of
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.dataset.view import Op, View
from flux_atelier.core.errors import AtelierError
from flux_atelier.core.options import parse

NAMES = "abcdef"


def row(name: str, number: int, **values) -> StoredRow:
    return StoredRow(f"{name}.png", f"{number:x}".zfill(2) * 16, width=100, height=80, format="PNG", **values)


@pytest.fixture
def folder(tmp_path):
    """Six rows, sharpness 0.1 to 0.6; b is rejected, c is in the validation split."""
    place = tmp_path / "sea-12345678"
    with Store(place / "atelier.db") as store:
        store.put([row(name, i + 1, scores={"sharpness": (i + 1) / 10}) for i, name in enumerate(NAMES)])
        store.set_meta("root", str(tmp_path / "pictures"))
        ids = store.ids()
        store.decide([ids[1]], "reject", "human", "blurred")
        store.edit({ids[2]: {"split": "validation"}}, "Split")
    return place


@pytest.fixture
def stores():
    opened = Stores()
    yield opened
    opened.close()


def whole(folder) -> View:
    with Store(folder / "atelier.db") as store:
        return View.of(store)


def letters(rows) -> str:
    return "".join(r.path[0] + r.id.partition("+")[2] for r in rows)


def asked(said: dict, kind=Decide):
    return parse(kind, said, "The request")


# --- kept views ------------------------------------------------------------------------------------------------------


def test_a_kept_view_comes_back_as_it_was(folder):
    view = whole(folder)
    ids = view.ids
    view = view.lay({ids[0]: {"split": "test", "tags": ("sea",), "captions": (WrittenCaption("x", "model", "joy"),)}})
    view = (
        view.with_variants({ids[1]: [{"ops": [{"name": "flip"}]}]})
        .preferring("joy")
        .then(Op("scale", (("factor", 0.5),)))
    )
    view = view.without({ids[5]: "too small"}, "Curate Dataset")
    again = open_view(folder, keep_view(view))
    assert again.fingerprint == view.fingerprint
    assert again.rows() == view.rows()
    assert (again.left_out, again.ops, again.captions) == (view.left_out, view.ops, view.captions)


def test_equal_views_have_one_key_and_others_another(folder):
    view = whole(folder)
    keys = [
        keep_view(v) for v in (view, view.filter(""), view.only(view.ids[1:]), view.lay({view.ids[0]: {"repeats": 2}}))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)


def test_the_newest_views_stay(folder):
    view, keys = whole(folder), []
    for i in range(NEWEST + 3):
        keys.append(keep_view(view.lay({view.ids[0]: {"repeats": i + 2}})))
        os.utime(kept_file(folder, keys[-1]), (i + 1, i + 1))
    there = {key for key in keys if kept_file(folder, key).exists()}
    assert there == set(keys[-NEWEST:])
    with pytest.raises(Absent, match="There is no view"):
        open_view(folder, keys[0])


@pytest.mark.parametrize("key", ["", "../atelier", "0" * 15, "0" * 17, "G" * 16, "0" * 16, "0" * 15 + "\n", "\0" * 16])
def test_what_is_no_key_is_not_there(folder, key):
    with pytest.raises(Absent):
        open_view(folder, key)


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"no json"), gzip.compress(b"[]"), gzip.compress(b"{}"), gzip.compress(b'{"a": 1}')[:-9],
     gzip.compress(json.dumps({"store": "../x.db", "ids": [], "laid": {}, "left_out": [], "ops": [], "captions": [], "revision": 1}).encode())],
    ids=range(7),
)  # fmt: skip
def test_a_damaged_view_is_told(folder, data):
    file = kept_file(folder, keep_view(whole(folder)))
    file.write_bytes(data)
    with pytest.raises(AtelierError, match="is damaged"):
        open_view(folder, file.name[:16])


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "abcdef"),
        ({"offset": 2, "limit": 2}, "cd"),
        ({"offset": 9}, ""),
        ({"order": "-sharpness"}, "fedcba"),
        ({"filter": "sharpness > 0.25", "order": "-path"}, "fedc"),
        ({"filter": "rejected"}, "b"),
        ({"filter": "undecided", "limit": 3}, "acd"),
        ({"filter": "split == 'validation'"}, "c"),
        ({"filter": "  ", "order": ""}, "abcdef"),
    ],
)
def test_pages_are_what_was_asked_for(folder, stores, said, expected):
    key = keep_view(whole(folder))
    with stores.use(folder) as opened:
        page = opened.page(key, Asked(**said))
    assert letters(page.rows) == expected
    with stores.use(folder) as opened:
        everything = opened.page(key, Asked(**(said | {"offset": 0, "limit": 500})))
    assert page.total == len(everything.rows)


def test_laid_values_variants_and_what_is_left_out(folder, stores):
    view = whole(folder)
    ids = view.ids
    view = view.lay({ids[0]: {"split": "test"}}).with_variants({ids[3]: [{"ops": [{"name": "flip"}]}]})
    view = view.without({ids[4]: "too small", ids[5]: "blurred"}, "Curate Dataset")
    key = keep_view(view)
    with stores.use(folder) as opened:
        assert letters(opened.page(key, Asked()).rows) == "abcdd1"
        assert letters(opened.page(key, Asked(filter="split == 'test'")).rows) == "a"
        left = opened.page(key, Asked(group="left_out", order="-path"))
        assert letters(left.rows) == "fe"
        assert [left.left_out[r.id].reason for r in left.rows] == ["blurred", "too small"]
        assert opened.page(key, Asked()).left_out == {}
        counts, splits = opened.counts(key)
        assert dict(counts) == {"keep": 0, "reject": 1, "undecided": 4, "left_out": 2}
        assert dict(splits) == {"test": 1, "train": 3, "validation": 1}
        variant = opened.page(key, Asked()).rows[-1]
        assert (variant.parent, variant.ops) == (ids[3], ({"name": "flip"},))


@pytest.mark.parametrize(
    ("said", "words"),
    [({"group": "none"}, "no group"), ({"order": "charm"}, "to sort by"), ({"filter": "charm > 1"}, "not known"),
     ({"offset": -1}, "offset"), ({"limit": 0}, "limit"), ({"limit": 501}, "limit")],
)  # fmt: skip
def test_a_bad_question_is_told(folder, stores, said, words):
    key = keep_view(whole(folder))
    with stores.use(folder) as opened, pytest.raises(AtelierError, match=words):
        opened.page(key, Asked(**said))


def test_random_pages_agree_with_the_view_while_people_decide_and_scans_write(folder, stores):
    rng, view = random.Random(0), whole(folder)
    key = keep_view(view)
    filters = ("", "undecided", "sharpness > 0.2", "stars >= 2", "not rejected and sharpness < 0.5", "captions == 1")
    with stores.use(folder) as opened:
        for step in range(120):
            kind = rng.randrange(6)
            own = rng.choice(view.ids)
            if kind == 0:
                change(opened, key, asked({"ids": [own], "decision": rng.choice(["keep", "reject", None])}))
            elif kind == 1:
                change(opened, key, asked({"ids": [own], "stars": rng.randrange(6)}, Rate))
            elif kind == 2:
                undo(opened) if last_by_human(opened) else None
            elif kind == 3:
                place = view.ids.index(own)
                opened.store.put([row(NAMES[place], place + 1, scores={"sharpness": rng.random()})])
            order, expression = rng.choice(["path", "-sharpness", "stars", "decision"]), rng.choice(filters)
            wanted = view.filter(expression).sort(order).ids
            assert opened.ids(key, Asked(filter=expression, order=order)) == wanted, (step, order, expression)


def last_by_human(opened) -> bool:
    last = opened.store.db.execute("SELECT by FROM undo ORDER BY number DESC").fetchone()
    return last is not None and last["by"] == "human"


def test_an_order_by_a_score_outlives_decisions_and_not_a_scan(folder, stores, monkeypatch):
    key, sorts = keep_view(whole(folder)), []
    usual = View.sort
    monkeypatch.setattr(View, "sort", lambda self, order: sorts.append(order) or usual(self, order))
    with stores.use(folder) as opened:
        ids = opened.ids(key, Asked(order="-sharpness"))
        change(opened, key, asked({"ids": list(ids[:2]), "decision": "keep"}))
        undo(opened)
        assert opened.ids(key, Asked(order="-sharpness")) is ids
        assert sorts == ["-sharpness"]
        opened.store.put([row("a", 1, scores={"sharpness": 2.0})])
        assert opened.ids(key, Asked(order="-sharpness"))[0] == whole(folder).ids[0]
        opened.ids(key, Asked(order="stars"))
        change(opened, key, asked({"ids": [ids[0]], "stars": 1}, Rate))
        assert opened.ids(key, Asked(order="-stars"))[0] == ids[0]


def test_filter_words_are_listed():
    words = words_of(["sharpness"])
    assert {"width", "sharpness", "tag:", "undecided"} <= set(words)


# --- changes ---------------------------------------------------------------------------------------------------------


def test_decisions_by_ids_and_by_filter_are_one_undo_each(folder, stores):
    key = keep_view(whole(folder))
    with stores.use(folder) as opened:
        ids = opened.ids(key, Asked())
        first = change(opened, key, asked({"ids": [ids[0], ids[0], f"{ids[0]}+1"], "decision": "keep"}))
        assert first["changed"] == 1
        assert change(opened, key, asked({"filter": "undecided", "decision": "reject", "reason": "no"}))["changed"] == 4
        assert dict(opened.counts(key)[0]) == {"keep": 1, "reject": 5, "undecided": 0, "left_out": 0}
        assert change(opened, key, asked({"filter": "undecided", "decision": "keep"}))["changed"] == 0
        assert undo(opened)["undone"] == "reject"
        assert dict(opened.counts(key)[0]) == {"keep": 1, "reject": 1, "undecided": 4, "left_out": 0}
        assert undo(opened)["undone"] == "keep"
        opened.store.edit({ids[1]: {"boxes": ()}}, "Find Faces", undoable=False)
        assert undo(opened)["undone"] == "edit"  # what the fixture edited before; boxes stay found
        assert opened.store.rows([ids[1]])[0].boxes == ()


def test_fifty_steps_are_taken_back_after_the_store_was_closed(folder, stores):
    key = keep_view(whole(folder))
    rng = random.Random(1)
    before = []
    with stores.use(folder) as opened:
        for _ in range(50):
            before.append(opened.page(key, Asked()).rows)
            change(
                opened,
                key,
                asked({"ids": rng.sample(whole(folder).ids, 2), "decision": rng.choice(["keep", "reject", None])}),
            )
    stores.close()
    with stores.use(folder) as opened:
        for rows in reversed(before):
            undo(opened)
            assert [(r.id, r.decision, r.reason) for r in opened.page(key, Asked()).rows] == [
                (r.id, r.decision, r.reason) for r in rows
            ]


def test_tags_captions_stars_and_crops(folder, stores):
    key = keep_view(whole(folder))
    with stores.use(folder) as opened:
        own = opened.ids(key, Asked())[0]
        opened.store.caption({own: [WrittenCaption("a sea", "model", "joy")]}, "Caption")
        change(opened, key, asked({"ids": [own], "add": ["Sea", "sky", "sea"]}, Tag))
        assert change(opened, key, asked({"ids": [own], "add": ["SEA"]}, Tag))["changed"] == 0
        change(opened, key, asked({"ids": [own], "remove": ["SKY"], "add": ["boat"]}, Tag))
        change(opened, key, asked({"ids": [own], "stars": 4}, Rate))
        change(opened, key, asked({"id": own, "crop": [10, 0, 90, 80]}, Cut))
        change(opened, key, asked({"id": own, "texts": ["  mine ", "", "mine", "too"]}, Write))
        seen = opened.row(own)
        assert (seen.tags, seen.stars, seen.crop) == (("Sea", "boat"), 4, (10, 0, 90, 80))
        assert [(c.text, c.author) for c in seen.captions] == [("mine", "human"), ("too", "human"), ("a sea", "model")]
        change(opened, key, asked({"id": own, "texts": []}, Write))
        assert [c.text for c in opened.row(own).captions] == ["a sea"]
        change(opened, key, asked({"ids": [own], "stars": 0}, Rate))
        change(opened, key, asked({"id": own, "crop": None}, Cut))
        assert (opened.row(own).stars, opened.row(own).crop) == (None, None)


def test_what_a_person_wrote_is_seen_before_the_nodes_run_again(folder, stores):
    view = whole(folder)
    own = view.ids[0]
    made = {"captions": (WrittenCaption("made", "model", "template"),), "crop": (0, 0, 50, 50)}
    key = keep_view(view.lay({own: made}))
    with stores.use(folder) as opened:
        assert opened.rows(key, [own])[0].captions[0].text == "made"
        change(opened, key, asked({"id": own, "texts": ["mine"]}, Write))
        change(opened, key, asked({"id": own, "crop": [5, 5, 20, 20]}, Cut))
        seen = opened.rows(key, [own])[0]
        assert ([c.text for c in seen.captions], seen.crop) == (["mine"], (5, 5, 20, 20))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Decide, {"decision": "keep"}),
        (Decide, {"ids": ["x"], "filter": "", "decision": "keep"}),
        (Decide, {"ids": ["x"]}),
        (Decide, {"ids": ["x"], "decision": "burn"}),
        (Decide, {"ids": "x", "decision": "keep"}),
        (Decide, {"ids": [1], "decision": "keep"}),
        (Decide, {"ids": ["x" * 81], "decision": "keep"}),
        (Decide, {"ids": ["\ud800"], "decision": "keep"}),
        (Decide, {"ids": ["x"], "decision": "keep", "path": "/etc"}),
        (Rate, {"ids": ["x"], "stars": 6}),
        (Rate, {"ids": ["x"], "stars": True}),
        (Rate, {"ids": ["x"], "stars": 2.0}),
        (Tag, {"ids": ["x"], "add": [" "]}),
        (Tag, {"ids": ["x"], "add": ["t"] * 201}),
        (Write, {"id": "x", "texts": ["\udfff"]}),
        (Write, {"id": "x", "texts": "one"}),
        (Write, {"id": "x", "texts": ["x" * 20_001]}),
        (Cut, {"id": "x", "crop": [1, 2, 3]}),
        (Cut, {"id": "x", "crop": [1, 2, 3, float("nan")]}),
        (Cut, {"id": "x", "crop": [True, 2, 3, 4]}),
        (Cut, {"id": "x"}),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(kind, said):
    with pytest.raises(AtelierError, match="The request") as error:
        asked(said, kind)
    assert str(error.value).count(". ") <= 2


@pytest.mark.parametrize("crop", [[-1, 0, 5, 5], [0, 0, 0, 5], [60, 0, 41, 5], [0, 0, 10**30, 5]])
def test_a_crop_stays_inside(folder, stores, crop):
    key = keep_view(whole(folder))
    with stores.use(folder) as opened, pytest.raises(AtelierError, match="leads out of"):
        change(opened, key, asked({"id": whole(folder).ids[0], "crop": crop}, Cut))


@pytest.mark.parametrize("own", ["nobody", "", "'; DROP TABLE rows; --", "ü" * 20, "../../etc"])
def test_rows_that_are_not_there_change_nothing(folder, stores, own):
    ids = whole(folder).ids
    with stores.use(folder) as opened:
        revision = opened.store.revision
        with pytest.raises(Absent):
            opened.row(own)
        with pytest.raises(Absent):
            opened.known([ids[0], own])
        assert opened.store.revision == revision
        with pytest.raises(Absent, match="no view"):
            change(opened, "0" * 16, Decide(ids=[ids[0]], decision="keep"))


# --- open stores -----------------------------------------------------------------------------------------------------


def test_stores_stay_open_and_the_oldest_is_closed(tmp_path):
    stores = Stores(most=2)
    folders = [tmp_path / name for name in "abc"]
    for place in folders:
        Store(place / "atelier.db").close()
    with stores.use(folders[0]) as first:
        db = first.store.db
        with stores.use(folders[0]) as again:
            assert again is first
        for place in folders[1:]:
            with stores.use(place):
                pass
        assert db.execute("SELECT 1").fetchone()[0] == 1  # put out, but still in use
    with pytest.raises(Exception, match="closed"):
        db.execute("SELECT 1")
    with stores.use(folders[0]) as later:
        assert later is not first
    stores.close()


def test_a_store_made_anew_under_the_same_name_is_opened_anew(folder, stores):
    with stores.use(folder) as opened:
        assert opened.store.revision > 0
    for file in folder.glob("atelier.db*"):
        file.rename(folder / f"old-{file.name}")
    with pytest.raises(Absent), stores.use(folder):
        pass
    Store(folder / "atelier.db").close()
    with stores.use(folder) as opened:
        assert opened.store.revision == 0


def test_eight_people_decide_while_a_scan_writes(folder, stores):
    key, ids, failed = keep_view(whole(folder)), whole(folder).ids, []
    with Store(folder / "atelier.db") as store:
        edited = store.edited

    def decide(number: int):
        rng = random.Random(number)
        for _ in range(12):
            with stores.use(folder) as opened:
                change(opened, key, asked({"ids": [rng.choice(ids)], "decision": rng.choice(["keep", "reject"])}))
                change(opened, key, asked({"ids": [ids[0]], "add": [f"{number}-{rng.random()}"]}, Tag))
                counts, _ = opened.counts(key)
                if counts["keep"] + counts["reject"] + counts["undecided"] != 6:
                    failed.append(dict(counts))

    def write():
        with Store(folder / "atelier.db") as store:
            for i in range(30):
                store.put([row(f"new{i}-{k}", 10 + i, scores={"sharpness": 0.5}) for k in range(20)])

    threads = [threading.Thread(target=decide, args=(n,)) for n in range(8)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with stores.use(folder) as opened:
        assert opened.store.edited == edited + 8 * 12 * 2
        assert len(opened.row(ids[0]).tags) == 8 * 12  # none was lost between reading and writing
        assert len(opened.store.ids()) == 606


def test_a_decision_does_not_wait_behind_a_slow_filter(folder, stores, monkeypatch):
    key, begun, go_on = keep_view(whole(folder)), threading.Event(), threading.Event()
    usual = View.matching

    def slow(self, expression):
        begun.set()
        assert go_on.wait(60)
        return usual(self, expression)

    monkeypatch.setattr(View, "matching", slow)
    with stores.use(folder) as opened:
        seen = []
        reading = [
            threading.Thread(target=lambda: seen.append(letters(opened.page(key, Asked(filter="undecided")).rows)))
            for _ in range(3)
        ]
        for thread in reading:
            thread.start()
        assert begun.wait(60)
        change(opened, key, asked({"ids": [whole(folder).ids[0]], "decision": "keep"}))
        assert letters(opened.page(key, Asked()).rows) == NAMES
        go_on.set()
        for thread in reading:
            thread.join()
        assert len(seen) == 3


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scanned(tmp_path):
    """Four pictures: noise, the same mirrored, the same saved again, and other noise."""
    root = tmp_path / "pictures"
    root.mkdir()
    grains = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    noise = Image.fromarray(grains).resize((320, 240), Image.Resampling.BICUBIC).convert("RGB")
    other = Image.radial_gradient("L").resize((320, 200)).convert("RGB")
    noise.save(root / "a.png")
    noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "b.png")
    noise.resize((160, 120)).save(root / "c.jpg", quality=70)
    other.save(root / "d.png")
    place = tmp_path / "set"
    with Store(place / "atelier.db") as store:
        finish(scan(store, list_folder(root)))
    return place


def test_pictures_alike_are_found_in_every_orientation(scanned, stores):
    key = keep_view(whole(scanned))
    with stores.use(scanned) as opened:
        own = opened.ids(key, Asked())[0]
        found = opened.alike(key, own, 2)
        assert {r.path for r, _ in found} == {"b.png", "c.jpg"}
        assert max(apart for _, apart in found) <= 6
        (*_, (last, apart)) = opened.alike(key, own, 12)
        assert (last.path, len(opened.alike(key, own, 12))) == ("d.png", 3)
        assert apart > 10
        assert [apart for _, apart in opened.alike(key, own, 12)] == sorted(
            apart for _, apart in opened.alike(key, own, 12)
        )


def test_a_copy_is_no_bit_away_whatever_the_thumbnail_lost(tmp_path, stores):
    """Grains that JPEG cannot keep: the copy's distance comes from the stored hash, not from the thumbnail's."""
    root, place = tmp_path / "pictures", tmp_path / "set"
    root.mkdir()
    rng = np.random.default_rng(1)
    for i in range(40):
        Image.fromarray(rng.integers(118, 138, (24, 32), np.uint8)).resize((96, 72)).save(root / f"{i:02}.png")
        (root / f"{i:02} again.png").write_bytes((root / f"{i:02}.png").read_bytes())
    with Store(place / "atelier.db") as store:
        finish(scan(store, list_folder(root)))
    key = keep_view(whole(place))
    with stores.use(place) as opened:
        apart = [opened.alike(key, own, 1)[0][1] for own in opened.ids(key, Asked())]
    assert apart == [0] * 80


def found_groups(opened, key):
    until = time.monotonic() + 60
    while isinstance(groups := opened.groups(key), Pending):
        assert time.monotonic() < until
        time.sleep(0.01)
    return groups


def test_groups_are_found_in_the_background_and_kept(scanned, stores):
    key = keep_view(whole(scanned))
    with stores.use(scanned) as opened:
        assert isinstance(opened.page(key, Asked(group="groups")), Pending)
        groups = found_groups(opened, key)
        (group,) = groups
        rows = {r.id: r.path for r in whole(scanned).rows()}
        assert {rows[own] for own in (group.kept, *group.left_out)} == {"a.png", "b.png", "c.jpg"}
        change(opened, key, asked({"ids": [group.left_out[0]], "decision": "reject"}))
        assert opened.groups(key) is groups  # a decision makes no other copies
        page = opened.page(key, Asked(group="groups"))
        assert ([r.id for r in page.rows], page.total) == ([group.kept, *group.left_out], 3)
        assert letters(opened.page(key, Asked(group="groups", filter="not rejected")).rows) != letters(page.rows)
        opened.store.set_meta("note", "a scan wrote")
        assert found_groups(opened, key) == groups


def test_a_thumb_that_is_missing_is_made_and_one_that_cannot_be_is_told(scanned, stores, tmp_path):
    key = keep_view(whole(scanned))
    with stores.use(scanned) as opened:
        first, second, *_ = opened.page(key, Asked()).rows
        usual = opened.thumb(first)
        before = Image.open(usual).size
        usual.unlink()
        assert Image.open(opened.thumb(first)).size == before == (256, 192)
        opened.thumb(second).unlink()
        (tmp_path / "pictures" / "b.png").unlink()
        with pytest.raises(Absent, match="There is no file"):
            opened.thumb(second)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "x/../../secret.png", "../pictures-too/secret.png"])
def test_a_path_that_leads_out_of_the_root_is_not_read(tmp_path, stores, path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures-too").mkdir()
    for place in (tmp_path, tmp_path / "pictures-too"):
        Image.new("RGB", (8, 8)).save(place / "secret.png")
    with Store(tmp_path / "set" / "atelier.db") as store:
        store.put([StoredRow(path, "1" * 32, width=8, height=8)])
        store.set_meta("root", str(tmp_path / "pictures"))
    key = keep_view(whole(tmp_path / "set"))
    with stores.use(tmp_path / "set") as opened:
        (only,) = opened.page(key, Asked()).rows
        with pytest.raises(Absent):
            opened.thumb(only)
        assert found_groups(opened, key) == ()
        assert not (tmp_path / "set" / "thumbs").exists()


def test_a_root_that_may_not_be_read_is_not(scanned, tmp_path):
    stores = Stores(readable=lambda root: root.is_relative_to(tmp_path / "elsewhere"))
    key = keep_view(whole(scanned))
    with stores.use(scanned) as opened:
        first = opened.page(key, Asked()).rows[0]
        opened.thumb(first)  # there already: it came of a scan
        with pytest.raises(Absent, match="may not be read"):
            opened.source(first)
        with pytest.raises(Absent, match="may not be read"):
            opened.groups(key)
    stores.close()
