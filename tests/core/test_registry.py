"""The registry: found by words, known by what they change, whole after kills, damage and two writers at once."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors
from flux_atelier.core.lora import registry as registry_room
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import parse_lora, read_lora, to_layout, write_lora
from flux_atelier.core.lora.header import edit_header, hash_file
from flux_atelier.core.lora.identity import identity, survey
from flux_atelier.core.lora.kinds import Kron
from flux_atelier.core.lora.merge import merge
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.registry import Entry, Parent, add_score, annotate, forget_missing, open_registry, put
from flux_atelier.core.lora.scan import lora_files, parents_entry, record, scan
from flux_atelier.core.lora.search import copies, family, matching, resolve, search
from flux_atelier.trainer.commands import registry as commands

SIZES = {"double_blocks.0.img_attn.qkv": (384, 128), "single_blocks.1.linear1": (896, 128), "img_in": (128, 64)}


def some_lora(seed=0, alpha=4.0, rank=4, dtype=torch.float32, **metadata):
    rng = torch.Generator().manual_seed(seed)
    modules = {
        name: Factors(
            torch.randn(o, rank, generator=rng).to(dtype), torch.randn(rank, i, generator=rng).to(dtype), alpha
        )
        for name, (o, i) in SIZES.items()
    }
    return Lora(modules, "kohya", metadata)


def write(path, lora, layout="kohya", dtype=torch.float16):
    return write_lora(path, lora, layout, dtype)


@pytest.fixture
def opened(tmp_path):
    with open_registry(tmp_path / "made" / "loras.sqlite") as registry:
        yield registry


def states(registry, *places, **how):
    return [(step.path.name, step.state) for step in scan(registry, places, **how)]


def filled(registry, *entries):
    with registry.change() as db:
        for entry in entries:
            put(db, entry)


def names(entries):
    return [entry.name for entry in entries]


# What a LoRA is known by


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("alpha", [4.0, 6.0, 0.25, 2.9], ids=str)
@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
def test_copies_in_every_layout_and_on_wires_have_one_identity(tmp_path, layout, alpha, dtype):
    first = read_lora(write(tmp_path / "a.safetensors", some_lora(1, alpha), "kohya", dtype))
    copy = read_lora(write(tmp_path / "b.safetensors", first, layout, dtype))
    assert copy.layout == layout
    assert identity(copy) == identity(first)
    for lora in (first, copy):  # what a loader puts on a wire: kohya keys in float32, without a header
        assert identity(parse_lora(to_layout(lora, "kohya", torch.float32), {}, "wire")) == identity(first)


@pytest.mark.parametrize("alpha", [4.0, 6.0], ids=str)
def test_a_wire_has_the_identity_of_the_float16_file_made_from_it(tmp_path, alpha):
    wire = some_lora(2, alpha)
    assert identity(read_lora(write(tmp_path / "a.safetensors", wire))) == identity(wire)


@pytest.mark.parametrize(
    "other",
    [
        some_lora(3),
        some_lora(2, alpha=2.0),
        some_lora(2, rank=5),
        merge([("a", -1.0, some_lora(2))]).lora,
        merge([("a", 0.999, some_lora(2))]).lora,
        Lora(dict(list(some_lora(2).modules.items())[:2]), "kohya"),
        Lora({n.replace(".0.", ".1."): f for n, f in some_lora(2).modules.items()}, "kohya"),
        replace(some_lora(2), vectors={"img_in.bias": torch.ones(128)}),
    ],
    ids=["seed", "alpha", "rank", "negated", "weaker", "fewer layers", "another block", "a bias besides"],
)
def test_other_loras_have_another_identity(other):
    assert identity(other) != identity(some_lora(2))


def test_one_value_of_one_factor_makes_another_lora():
    lora = some_lora(2)
    modules = dict(lora.modules)
    down = modules["img_in"].down.clone()
    down[1, 2] *= 1.01
    modules["img_in"] = replace(modules["img_in"], down=down)
    assert identity(Lora(modules, "kohya")) != identity(lora)


def test_the_header_and_the_order_of_layers_do_not_count():
    lora = some_lora(2)
    turned = Lora(dict(reversed(lora.modules.items())), "comfy", {"modelspec.title": "x"})
    assert identity(turned) == identity(lora)


def test_a_survey_tells_kinds_rank_and_alpha():
    kron = Kron(torch.ones(4, 4), (torch.ones(32, 2), torch.ones(2, 16)), 0.5)
    found = survey(Lora({**some_lora(0, alpha=6.0).modules, "txt_in": kron}, "kohya"))
    assert (found.kinds, found.rank, found.alpha, found.layers) == (("LoRA", "LoKr"), 4, None, 4)
    assert survey(some_lora(0, alpha=6.0)).alpha == 6.0


def test_a_lokr_keeps_its_identity_through_a_file(tmp_path):
    kron = Kron(torch.randn(4, 4), (torch.randn(32, 2), torch.randn(2, 16)), 0.3)
    first = read_lora(write(tmp_path / "a.safetensors", Lora({"img_in": kron}, "kohya")))
    assert identity(read_lora(write(tmp_path / "b.safetensors", first, "comfy"))) == identity(first)


# Scanning


def test_a_scan_reads_what_a_file_says(tmp_path, opened):
    tags = {"10_cat": {"cat": 10, "sofa": 3}}
    metadata = {
        "modelspec.trigger_phrase": "ohwx, sks", "ss_training_comment": "first try", "modelspec.title": "Evening",
        "modelspec.tags": "style, dusk", "ss_tag_frequency": json.dumps(tags), "modelspec.thumbnail": "x" * 9999,
        "flux_atelier.config": json.dumps({"steps": 7}),
    }  # fmt: skip
    path = write(tmp_path / "loras" / "evening.safetensors", some_lora(0, 8.0, **metadata))
    assert states(opened, tmp_path / "loras") == [("evening.safetensors", "read")]
    (entry,) = search(opened)
    assert entry.path == str(path)
    assert entry.hash == identity(read_lora(path))
    assert (entry.sha256, entry.tensors_sha256) == (hash_file(path).file, hash_file(path).tensors)
    assert (entry.base, entry.layout, entry.kinds, entry.rank, entry.alpha) == ("flux1", "kohya", ("LoRA",), 4, 8.0)
    assert (entry.layers, entry.dtype, entry.size) == (3, "F16", path.stat().st_size)
    assert (entry.triggers, entry.comment, entry.title) == (("ohwx", "sks"), "first try", "Evening")
    assert entry.tags == ("style", "dusk")
    assert entry.provenance["flux_atelier.config"] == {"steps": 7}
    assert entry.provenance["ss_tag_frequency"] == {"cat": 10, "sofa": 3}
    assert "modelspec.thumbnail" not in entry.provenance
    assert 0 < entry.first_seen <= entry.last_seen <= time.time()


def test_a_rescan_reads_only_what_changed(tmp_path, opened, monkeypatch):
    folder = tmp_path / "loras"
    for i in range(3):
        write(folder / f"{i}.safetensors", some_lora(i))
    assert states(opened, folder) == [(f"{i}.safetensors", "read") for i in range(3)]
    read = []
    from flux_atelier.core.lora import scan as room

    monkeypatch.setattr(room, "read_entry", lambda path, real=room.read_entry: read.append(path.name) or real(path))
    write(folder / "1.safetensors", some_lora(7))
    (folder / "2.safetensors").unlink()
    assert states(opened, folder) == [
        ("0.safetensors", "unchanged"), ("1.safetensors", "read"), ("2.safetensors", "gone"),
    ]  # fmt: skip
    assert read == ["1.safetensors"]
    assert names(search(opened)) == ["0", "1"]
    assert names(search(opened, missing=True)) == ["0", "1", "2"]
    write(folder / "2.safetensors", some_lora(2))
    assert states(opened, folder)[-1] == ("2.safetensors", "read")
    assert names(search(opened)) == ["0", "1", "2"]
    assert [state for _, state in states(opened, folder, again=True)] == ["read"] * 3


def test_a_file_that_comes_back_unchanged_is_there_again(tmp_path, opened):
    path = write(tmp_path / "loras" / "a.safetensors", some_lora())
    states(opened, path.parent)
    shutil.move(path, tmp_path / "elsewhere")
    assert states(opened, path.parent) == [("a.safetensors", "gone")]
    assert states(opened, path.parent) == []
    shutil.move(tmp_path / "elsewhere", path)
    assert states(opened, path.parent) == [("a.safetensors", "unchanged")]
    assert names(search(opened)) == ["a"]


def test_other_folders_files_are_not_gone(tmp_path, opened):
    write(tmp_path / "one" / "a.safetensors", some_lora())
    write(tmp_path / "two" / "b.safetensors", some_lora(1))
    states(opened, tmp_path / "one", tmp_path / "two")
    states(opened, tmp_path / "one")
    assert names(search(opened)) == ["a", "b"]


def damaged_files(folder):
    """Files that are no LoRA, each in its own way."""
    write(folder / "good.safetensors", some_lora())
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("hello")
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    write_tensors(folder / "else.safetensors", {"some.weight": torch.ones(2)}, {"modelspec.title": "No LoRA"})
    write_tensors(folder / "half.safetensors", {"lora_unet_img_in.lora_up.weight": torch.ones(4, 2)})
    (folder / "picture.png").write_bytes(b"no LoRA at all")
    (folder / ".half.safetensors.1.part").write_bytes(b"unfinished")


def test_damaged_files_are_told_and_stop_nothing(tmp_path, opened):
    damaged_files(tmp_path / "loras")
    found = {step.path.name: step for step in scan(opened, [tmp_path / "loras"])}
    assert [n for n, step in found.items() if step.state == "read"] == ["good.safetensors"]
    assert len(found) == 7
    entries = {e.name: e for e in search(opened)}
    for name in ("empty", "text", "pointer", "cut", "else", "half"):
        assert entries[name].problem == found[f"{name}.safetensors"].problem != ""
        assert entries[name].hash == ""
        assert len(entries[name].sha256) == 64
    assert "git lfs pull" in entries["pointer"].problem
    assert entries["else"].title == "No LoRA"
    assert {state for _, state in states(opened, tmp_path / "loras")} == {"unchanged"}


def test_a_reader_that_fails_in_an_unforeseen_way_stops_nothing(tmp_path, opened, monkeypatch, caplog):
    from flux_atelier.core.lora import scan as room

    write(tmp_path / "a.safetensors", some_lora())
    write(tmp_path / "b.safetensors", some_lora(1))

    def odd(path, real=room.read_lora):
        if path.name == "a.safetensors":
            raise KeyError("odd")
        return real(path)

    monkeypatch.setattr(room, "read_lora", odd)
    assert [s for _, s in states(opened, tmp_path)] == ["unreadable", "read"]
    problems = {Path(entry.path).name: entry.problem for entry in search(opened)}
    assert "KeyError: 'odd'" in problems["a.safetensors"] and problems["b.safetensors"] == ""
    assert "could not be read" in caplog.text


def test_a_folder_that_is_not_there_is_told_before_anything_is_lost(tmp_path, opened):
    path = write(tmp_path / "disk" / "a.safetensors", some_lora())
    states(opened, path.parent)
    shutil.move(path.parent, tmp_path / "unplugged")
    with pytest.raises(AtelierError, match="no folder"):
        states(opened, path.parent)
    assert names(search(opened)) == ["a"]


def test_links_in_circles_end(tmp_path):
    write(tmp_path / "a" / "x.safetensors", some_lora())
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "dead.safetensors").symlink_to(tmp_path / "nowhere")
    assert sorted(p.name for p in lora_files(tmp_path / "a")) == ["dead.safetensors", "x.safetensors"]


def test_a_dead_link_is_told(tmp_path, opened):
    (tmp_path / "dead.safetensors").symlink_to(tmp_path / "nowhere")
    assert states(opened, tmp_path) == [("dead.safetensors", "unreadable")]
    assert "no file" in search(opened, missing=True)[0].problem


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_text_is_told(tmp_path, opened):
    write(tmp_path / "a.safetensors", some_lora())
    os.rename(tmp_path / "a.safetensors", os.fsencode(tmp_path) + b"/\xff.safetensors")
    write(tmp_path / "z.safetensors", some_lora())
    (first, second) = scan(opened, [tmp_path])
    assert "Rename the file" in {first.state: first, second.state: second}["unreadable"].problem
    assert names(search(opened)) == ["z"]


def test_a_scan_can_be_left_and_taken_up(tmp_path, opened):
    for i in range(5):
        write(tmp_path / f"{i}.safetensors", some_lora(i))
    running = scan(opened, [tmp_path])
    next(running), next(running)
    running.close()
    assert len(search(opened)) == 2
    assert [s for _, s in states(opened, tmp_path)] == ["unchanged"] * 2 + ["read"] * 3


# What only the registry knows


def test_scores_and_notes_go_with_the_lora_not_with_the_file(tmp_path, opened):
    first = write(tmp_path / "a.safetensors", some_lora())
    states(opened, tmp_path)
    known = search(opened)[0].hash
    assert add_score(opened, known, "style figure", 0.8) == 1
    annotate(opened, known, "good at dusk")
    add_score(opened, known, "weird ' \" $.[0] name", -1)
    edit_header(first, {"modelspec.title": "Named"})
    write(tmp_path / "b.safetensors", read_lora(first), "diffusers")
    states(opened, tmp_path)
    first.rename(tmp_path / "c.safetensors")
    states(opened, tmp_path)
    for entry in search(opened, missing=True):
        assert entry.scores == {"style figure": 0.8, "weird ' \" $.[0] name": -1.0}
        assert entry.notes == "good at dusk"
    assert sorted(e.name for e in copies(opened, resolve(opened, "b"))) == ["a", "b", "c"]
    assert names(search(opened, "DUSK")) == ["b", "c"]
    write(tmp_path / "b.safetensors", some_lora(9))  # another LoRA under the name
    states(opened, tmp_path)
    assert resolve(opened, str(tmp_path / "b.safetensors")).scores == {}


def test_scores_must_be_numbers_of_a_known_lora(tmp_path, opened):
    write(tmp_path / "a.safetensors", some_lora())
    (tmp_path / "b.safetensors").write_bytes(b"")
    states(opened, tmp_path)
    for known, name, value in ((search(opened)[0].hash, "x", float("nan")), ("", "x", 1.0), ("0" * 32, "x", 1.0)):
        with pytest.raises(AtelierError):
            add_score(opened, known, name, value)


def test_what_is_gone_is_forgotten_on_request(tmp_path, opened):
    for i in range(2):
        write(tmp_path / f"{i}.safetensors", some_lora(i))
    states(opened, tmp_path)
    (tmp_path / "0.safetensors").unlink()
    assert forget_missing(opened) == []
    states(opened, tmp_path)
    assert forget_missing(opened) == [str(tmp_path / "0.safetensors")]
    assert names(search(opened, missing=True)) == ["1"]
    assert search(opened, "0.safetensors", missing=True) == []


# Families


def test_a_family_of_merges_by_identities(tmp_path, opened):
    a, b, c = (read_lora(write(tmp_path / f"{n}.safetensors", some_lora(i))) for i, n in enumerate("abc"))
    states(opened, tmp_path)
    ids = {n: identity(x) for n, x in zip("abc", (a, b, c), strict=True)}
    ab = merge([("x", 0.5, a), ("y", 0.5, b)]).lora
    first = record(opened, write(tmp_path / "ab.safetensors", ab), ab, [Parent(ids["a"], "a"), Parent(ids["b"], "b")])
    abc = merge([("x", 1.0, ab), ("y", -1.0, c)], 4).lora  # made of the wire, not of the file
    parents = [Parent(identity(ab), "ab"), Parent(ids["c"], "c")]
    last = record(opened, write(tmp_path / "abc.safetensors", abc), abc, parents)
    found = family(opened, last.hash)
    assert [k.generation for k in found] == [-2, -2, -1, -1]
    assert {(k.generation, k.name) for k in found} == {(-2, "a"), (-2, "b"), (-1, "ab"), (-1, "c")}
    assert {(k.generation, k.name) for k in family(opened, ids["a"])} == {(1, "ab"), (2, "abc")}
    assert all(k.entry and not k.by_name for k in family(opened, ids["a"]))
    assert family(opened, ids["c"])[0].hash == last.hash
    assert first.hash in {k.hash for k in family(opened, last.hash)}


def test_a_bfloat16_file_is_known_by_its_wire_too(tmp_path, opened):
    wire = some_lora(5)
    made = record(opened, write(tmp_path / "a.safetensors", wire, dtype=torch.bfloat16), wire)
    assert identity(wire) != made.hash
    assert made.aliases == (identity(wire),)
    assert resolve(opened, identity(wire)).path == made.path
    child = some_lora(6)
    last = record(opened, write(tmp_path / "b.safetensors", child), child, [Parent(identity(wire), "")])
    assert [(k.generation, k.hash) for k in family(opened, last.hash)] == [(-1, made.hash)]
    assert [(k.generation, k.hash) for k in family(opened, made.hash)] == [(1, last.hash)]
    states(opened, tmp_path, again=True)  # what no file says outlives a rescan
    assert [(k.generation, k.hash) for k in family(opened, made.hash)] == [(1, last.hash)]


def test_parents_in_the_header_outlive_the_registry(tmp_path, opened):
    a, b = (read_lora(write(tmp_path / f"{n}.safetensors", some_lora(i))) for i, n in enumerate("ab"))
    made = merge([("x", 0.5, a), ("y", 0.5, b)]).lora
    made.metadata.update(parents_entry([("a", a), ("b", b)]))
    write(tmp_path / "ab.safetensors", made)
    states(opened, tmp_path)
    assert {(k.name, k.by_name) for k in family(opened, resolve(opened, "ab").hash)} == {("a", False), ("b", False)}


def test_a_recipe_with_names_alone_says_that_it_is_by_name(tmp_path, opened):
    a, b = (read_lora(write(tmp_path / f"{n}.safetensors", some_lora(i))) for i, n in enumerate("ab"))
    write(tmp_path / "ab.safetensors", merge([("a", 0.5, a), ("lost", 0.5, b)]).lora)
    states(opened, tmp_path)
    found = family(opened, resolve(opened, "ab").hash)
    assert {(k.name, k.hash, k.by_name) for k in found} == {("a", identity(a), True), ("lost", "", True)}


def test_a_circle_of_parents_ends(opened):
    ring = [
        Entry(f"/{i}.safetensors", hash=f"{i}" * 32, parents=(Parent(f"{(i + 1) % 3}" * 32, ""),)) for i in range(3)
    ]
    filled(opened, *ring)
    assert sorted(k.generation for k in family(opened, "0" * 32)) == [-2, -1, 1, 2]


# Searching

LISTED = [
    Entry(
        "/l/Evening_Light-v2.safetensors", hash="a1" * 16, base="flux1", triggers=("ohwx woman",), modified=3, size=5
    ),
    Entry(
        "/l/夜の光.safetensors", hash="b2" * 16, base="flux1", tags=("style",), modified=1, size=9, scores={"x": 0.5}
    ),
    Entry(
        "/l/100%_real.safetensors", hash="c3" * 16, base="sdxl", comment='it\'s "quoted"', modified=2, scores={"x": 2}
    ),
    Entry("/l/Stra\u00dfe.safetensors", hash="d4" * 16, base="flux1", notes="e\u0301tude AND (x OR y)", modified=9),
]


@pytest.fixture(params=[True, False], ids=["FTS5", "LIKE"])
def listed(request, tmp_path, monkeypatch):
    if not request.param:
        monkeypatch.setattr(registry_room, "can_index", lambda db: False)
    with open_registry(tmp_path / "loras.sqlite") as registry:
        assert registry.indexed is request.param
        filled(registry, *LISTED)
        yield registry


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [0, 1, 2, 3]),
        ("evening", [0]),
        ("LIGHT even", [0]),
        ("v2", [0]),
        ("vening_l", [0]),
        ("ohwx wom", [0]),
        ("evening style", []),
        ("夜", [1]),
        ("夜の光", [1]),
        ("の光", [1]),
        ("%", [2]),
        ("100%", [2]),
        ("_", [0, 2]),
        ("\\", []),
        ("it's", [2]),
        ('"quoted"', [2]),
        ("'; DROP TABLE loras; --", []),
        ('" OR words MATCH "', []),
        ("STRASSE", [3]),
        ("étude", [3]),
        ("ÉTUDE", [3]),
        ("AND", [3]),
        ("OR NOT", []),
        ("(x", [3]),
        ("*", []),
        ("words:evening", []),
        ("evening*", []),
        ("^evening", []),
        ("NEAR(a b)", []),
        ("a1a1a1a1", [0]),
        ("\0evening", [0]),
        ("\ud800", []),
        ("  \t\n", [0, 1, 2, 3]),
    ],
)
def test_words_find_the_same_with_and_without_the_index(listed, text, found):
    assert {e.path for e in search(listed, text)} == {LISTED[i].path for i in found}
    assert len(search(listed)) == len(LISTED)


def test_entries_come_back_as_they_were_put(listed):
    assert sorted(search(listed), key=lambda e: e.hash) == LISTED


@pytest.mark.parametrize(
    ("sort", "order"), [("name", "cadb"), ("newest", "dacb"), ("largest", "bacd"), ("score", "cbad")]
)
def test_orders(listed, sort, order):
    assert "".join(e.hash[0] for e in search(listed, sort=sort)) == order


def test_base_limit_and_unknown_orders(listed):
    assert names(search(listed, base="sdxl")) == ["100%_real"]
    assert len(search(listed, limit=2)) == 2
    assert search(listed, base="' OR 1=1 --") == []
    with pytest.raises(AtelierError, match="order"):
        search(listed, sort="path; DROP TABLE loras")
    with pytest.raises(AtelierError, match="at most 64"):
        search(listed, " ".join(str(i) for i in range(65)))
    assert search(listed, " ".join(f"word{i}" for i in range(64))) == []


def test_an_index_is_made_and_left_as_sqlite_has_it(tmp_path, monkeypatch):
    path = tmp_path / "loras.sqlite"
    for able in (True, False, True):
        monkeypatch.setattr(registry_room, "can_index", lambda db, able=able: able)
        with open_registry(path) as registry:
            assert registry.indexed is able
            filled(registry, replace(LISTED[0], path=f"/l/evening{able}{len(search(registry))}.safetensors"))
            assert len(search(registry, "evening")) == len(search(registry))
    assert len(search_in(path, "evening")) == 3


def search_in(path, text=""):
    with open_registry(path) as registry:
        return search(registry, text)


def test_five_thousand_rows_are_found_through_the_indices(opened):
    many = [
        Entry(f"/l/{i:05}.safetensors", hash=f"{i:032x}", triggers=(f"word{i}",), modified=i, size=i)
        for i in range(5000)
    ]
    filled(opened, *many)
    assert names(search(opened, "word4321")) == ["04321"]
    assert len(search(opened, limit=100_000)) == 5000
    assert resolve(opened, f"{77:032x}").name == "00077"
    where, values = matching("word4321", True)
    plan = [
        r["detail"] for r in opened.rows(f"EXPLAIN QUERY PLAN SELECT * FROM loras WHERE {' AND '.join(where)}", values)
    ]
    assert any("loras USING INTEGER PRIMARY KEY" in line for line in plan), plan
    assert any("loras_words VIRTUAL TABLE" in line for line in plan), plan
    assert not any(line.startswith("SCAN loras") and "VIRTUAL" not in line for line in plan), plan
    newest = opened.rows("EXPLAIN QUERY PLAN SELECT * FROM loras ORDER BY modified DESC, path LIMIT 20")
    assert any("loras_modified" in r["detail"] for r in newest)
    byhash = opened.rows("EXPLAIN QUERY PLAN SELECT * FROM loras WHERE hash = ?", ["x"])
    assert any("loras_hash" in r["detail"] for r in byhash)


def test_a_word_means_one_lora(tmp_path, opened):
    for i in range(2):
        write(tmp_path / f"{i}" / "same.safetensors", some_lora(i))
    states(opened, tmp_path)
    first = search(opened)[0]
    for word in (
        first.hash,
        first.hash[:12].upper(),
        first.sha256[:10].upper(),
        "0x" + first.tensors_sha256,
        first.path,
    ):
        assert resolve(opened, word).path == first.path
    with pytest.raises(AtelierError, match="means 2 LoRAs"):
        resolve(opened, "same")
    for word in ("nothing", "", "abcd" * 8, "%", "_"):
        with pytest.raises(AtelierError, match="has no LoRA"):
            resolve(opened, word)


# Whole at any time

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to save their imports")


def writer(path, name, number, shared=""):
    """A process that waits for its start and then writes rows, and scores of a shared one, each by a fresh opening.

    ->  the process and its pipe: send to start it, receive the number of each row when it is written
    """
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=write_rows, args=(its, path, name, number, shared))
    process.start()
    return process, ours


def write_rows(pipe, path, name, number, shared):
    pipe.recv()
    for i in range(number):
        with open_registry(path) as registry:
            filled(registry, Entry(f"/{name}/{i}.safetensors", hash=f"{name}{i}"))
            if shared:
                add_score(registry, shared, f"{name}{i}", i)
        pipe.send(i)


def together(path, number, names, shared=""):
    """Run writers at once to their ends; gives their exit codes."""
    pair = [writer(path, name, number, shared) for name in names]
    for _, pipe in pair:
        pipe.send("go")
    for process, _ in pair:
        process.join(120)
    return [process.exitcode for process, _ in pair]


@needs_fork
def test_two_processes_lose_nothing(tmp_path):
    path = tmp_path / "loras.sqlite"
    with open_registry(path) as registry:
        filled(registry, Entry("/shared.safetensors", hash="shared"))
    assert together(path, 40, "xy", "shared") == [0, 0]
    with open_registry(path) as registry:
        assert len(search(registry, limit=1000)) == 81
        assert len(resolve(registry, "shared").scores) == 80  # each a read and a write of one row
        assert len(search(registry, "safetensors", limit=1000)) == 81


@needs_fork
@pytest.mark.parametrize("damaged", [False, True], ids=["none", "damaged"])
def test_several_processes_make_it_at_once(tmp_path, damaged):
    for turn in range(8 if damaged else 2):
        path = tmp_path / str(turn) / "loras.sqlite"
        path.parent.mkdir()
        if damaged:
            path.write_text("no database " * 99)
        assert together(path, 2, "vwxyz") == [0] * 5
        assert len(search_in(path)) == 10
        assert len(list(path.parent.glob("*.damaged-*"))) == damaged


@needs_fork
def test_a_kill_leaves_whole_transactions(tmp_path):
    path = tmp_path / "loras.sqlite"
    with open_registry(path) as registry:
        filled(registry, Entry("/shared.safetensors", hash="shared"))
    process, pipe = writer(path, "x", 100_000, "shared")
    pipe.send("go")
    while pipe.recv() < 20:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with open_registry(path) as registry:
        assert registry.told == ""
        rows = [e for e in search(registry, limit=10**6) if e.hash != "shared"]
        scored = resolve(registry, "shared").scores
        assert len(rows) >= 21
        assert 0 <= len(rows) - len(scored) <= 1  # between the two transactions of a turn
        assert len(search(registry, "safetensors", limit=10**6)) == len(rows) + 1
        add_score(registry, "shared", "after", 1.0)


def test_an_error_in_a_change_undoes_it(opened):
    with pytest.raises(ZeroDivisionError), opened.change() as db:
        put(db, LISTED[0])
        raise ZeroDivisionError
    assert search(opened) == []
    filled(opened, LISTED[1])
    assert len(search(opened)) == 1


def test_a_writer_that_holds_on_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(registry_room, "BUSY_SECONDS", 0.05)
    path = tmp_path / "loras.sqlite"
    with open_registry(path) as one, open_registry(path) as other, one.change() as db:
        put(db, LISTED[0])
        with pytest.raises(AtelierError, match="database is locked"):
            filled(other, LISTED[1])
        assert search(other) == []  # readers never wait
    assert names(search_in(path)) == [LISTED[0].name]


@pytest.mark.parametrize("damage", ["text", "cut", "torn"])
def test_a_damaged_registry_is_set_aside_and_said(tmp_path, caplog, damage):
    path = tmp_path / "loras.sqlite"
    with open_registry(path) as registry:
        filled(registry, *(replace(LISTED[0], path=f"/{i}.safetensors", notes="mine " * 99) for i in range(200)))
    whole = path.read_bytes()
    if damage == "text":
        path.write_text("no database " * 99)
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(whole[:4096] + b"\xa5" * 40_000 + whole[44_096:])
    found = path.read_bytes()
    write(tmp_path / "loras" / "a.safetensors", some_lora())
    with caplog.at_level(logging.WARNING, "flux_atelier"), open_registry(path) as registry:
        assert "was damaged" in registry.told
        assert registry.told in caplog.text
        assert search(registry) == []
        assert states(registry, tmp_path / "loras") == [("a.safetensors", "read")]
    (aside,) = tmp_path.glob("loras.damaged-*.sqlite")
    assert aside.name in registry.told
    assert aside.read_bytes() == found
    assert names(search_in(path)) == ["a"]


def test_a_later_version_is_left_alone(tmp_path):
    path = tmp_path / "loras.sqlite"
    open_registry(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(AtelierError, match="later version"):
        open_registry(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtelierError, match="cannot be made"):
        open_registry(tmp_path / "file" / "loras.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(AtelierError, match="could not be used"):
        open_registry(tmp_path / "folder.sqlite")


# The command line


@pytest.fixture
def command(tmp_path):
    import argparse

    def run(name, *words):
        parser = argparse.ArgumentParser()
        _, add, execute = commands.COMMANDS[name]
        add(parser)
        first = ["--registry", str(tmp_path / "r.sqlite")] if name == "loras" else []
        return list(execute(parser.parse_args([*first, *map(str, words)])))

    return run


def test_the_commands_from_a_folder_to_a_family(tmp_path, command):
    folder = tmp_path / "loras"
    a = read_lora(write(folder / "a.safetensors", some_lora(0, **{"modelspec.trigger_phrase": "ohwx"})))
    b = read_lora(write(folder / "b.safetensors", some_lora(1)))
    made = merge([("a", 0.5, a), ("b", 0.5, b)]).lora
    made.metadata.update(parents_entry([("a", a), ("b", b)]))
    write(folder / "ab.safetensors", made)
    (folder / "bad.safetensors").write_bytes(b"")
    assert command("loras", "scan", folder)[-1].endswith("3 read, 0 unchanged, 1 unreadable, 0 gone")
    assert command("loras", "scan", folder)[-1].endswith("0 read, 4 unchanged, 0 unreadable, 0 gone")
    lines = command("loras", "find", "ohwx")
    assert len(lines) == 3  # a, what is made of it, and the count
    assert lines[-1] == "2 found"
    assert command("loras", "score", identity(a)[:10], "style figure", "0.75") == [
        f"{folder / 'a.safetensors'}: style figure 0.75"
    ]
    command("loras", "note", "a", "at dusk")
    told = "\n".join(command("loras", "show", "ab"))
    assert f"made of: {identity(a)[:10]} a" in told
    assert "style figure 0.75" in "\n".join(command("loras", "show", "a"))
    assert "notes: at dusk" in "\n".join(command("loras", "show", "a"))
    (folder / "bad.safetensors").unlink()
    command("loras", "scan", folder)
    assert command("loras", "forget")[-1] == "1 forgotten"


def test_the_header_command(tmp_path, command):
    path = write(tmp_path / "a.safetensors", some_lora())
    before = path.read_bytes()
    assert hash_file(path).file in command("header", path)[-1]
    assert path.read_bytes() == before
    lines = command(
        "header", path, "--set", "modelspec.title=Evening = night", "x=1", "--out", tmp_path / "b.safetensors"
    )
    assert "modelspec.title: - -> Evening = night" in lines
    assert path.read_bytes() == before
    command("header", tmp_path / "b.safetensors", "--set", "x=", "--registry", tmp_path / "r.sqlite")
    assert command("loras", "find", "night")[-1] == "1 found"
    with pytest.raises(AtelierError, match="KEY=TEXT"):
        command("header", path, "--set", "nonsense")


def test_the_header_command_shows_long_entries_whole_when_asked(tmp_path, command):
    text = "a long day\n" * 40
    path = write(tmp_path / "a.safetensors", some_lora(0, ss_training_comment=text))
    assert any(
        line.startswith("  ss_training_comment: a long day") and line.endswith("...")
        for line in command("header", path)
    )
    assert f"  ss_training_comment: {text}" in command("header", path, "--all")


@pytest.mark.parametrize("action", ["scan .", "find", "show a", "score a likeness 1", "note a dusk", "forget"])
def test_the_registry_is_named_before_the_action_or_after(action):
    import argparse

    parser = argparse.ArgumentParser()
    commands.COMMANDS["loras"][1](parser)
    words = action.split()
    assert parser.parse_args([*words, "--registry", "x.sqlite"]).registry == Path("x.sqlite")
    assert parser.parse_args(["--registry", "x.sqlite", *words]).registry == Path("x.sqlite")
    assert parser.parse_args(words).registry == Path("loras.sqlite")
