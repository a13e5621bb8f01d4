"""Find LoRA and Edit LoRA Header in a real ComfyUI, over its own folders."""

import hashlib
import json
import logging

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.identity import identity
from flux_atelier.core.lora.merge import merge
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.registry import add_score, open_registry
from flux_atelier.core.lora.search import family, resolve, search

NOTHING = dict(
    trigger_words="", comment="", title="", author="", tags="", license="", description="", more="", save_as=""
)


def some_lora(seed=0, **metadata):
    rng = torch.Generator().manual_seed(seed)
    factors = Factors(torch.randn(128, 4, generator=rng), torch.randn(4, 64, generator=rng), 4.0)
    return Lora({"img_in": factors}, "kohya", metadata)


@pytest.fixture
def place(folders, monkeypatch):
    """output/loras as ComfyUI's only folder of LoRAs, with three files; and an empty registry."""
    import shutil

    import folder_paths

    loras = folders / "output" / "loras"
    shutil.rmtree(loras, ignore_errors=True)
    shutil.rmtree(folders / "output" / "flux_atelier", ignore_errors=True)
    known = ([str(loras)], folder_paths.folder_names_and_paths["loras"][1])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for i, (name, words) in enumerate({"dusk": "ohwx", "dawn": "sks", "sub/夜": "yoru"}.items()):
        write_lora(loras / f"{name}.safetensors", some_lora(i, **{"modelspec.trigger_phrase": words}))
    return loras


def run(node, **inputs):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


def find(query="", base="any", sort="name", limit=20, index=0, rescan=True):
    from flux_atelier.nodes.registry import FindLora

    return run(FindLora, query=query, base=base, sort=sort, limit=limit, index=index, rescan=rescan)


def stamp(query="", base="any", sort="name", limit=20, index=0, rescan=True):
    from flux_atelier.nodes.registry import FindLora

    return FindLora.fingerprint_inputs(query=query, base=base, sort=sort, limit=limit, index=index, rescan=rescan)


def edit(lora_name, **changes):
    from flux_atelier.nodes.registry import EditLoraHeader

    return run(EditLoraHeader, lora_name=lora_name, **NOTHING | changes)


def opened():
    from flux_atelier.nodes.registry import registry_file

    return open_registry(registry_file())


def test_a_search_gives_a_table_a_name_and_the_lora(place):
    import folder_paths

    table, name, lora = find("YORU").args
    assert name == "sub/夜.safetensors"
    assert name in folder_paths.get_filename_list("loras")
    assert "夜" in table
    assert "rank 4" in table
    file = read_lora(place / name)
    assert torch.equal(lora["lora_unet_img_in.lora_down.weight"], file.modules["img_in"].down.float())
    assert lora.metadata["modelspec.trigger_phrase"] == "yoru"
    assert not any(t.is_inference() for t in lora.values())
    assert (place.parent / "flux_atelier" / "loras.sqlite").is_file()


def test_rows_are_chosen_by_index_and_order(place):
    table, first, _ = find().args
    assert len(table.splitlines()) == 3
    assert first == "dawn.safetensors"
    assert [find(index=i).args[1] for i in range(3)] == ["dawn.safetensors", "dusk.safetensors", "sub/夜.safetensors"]
    with opened() as registry:
        add_score(registry, resolve(registry, "dusk").hash, "style figure", 0.7)
    table, best, _ = find(sort="score", limit=1).args
    assert best == "dusk.safetensors"
    assert "style figure 0.7" in table
    assert len(table.splitlines()) == 1


def test_a_search_that_finds_nothing_says_so(place):
    with pytest.raises(AtelierError, match="0 LoRAs match 'nothing'"):
        find("nothing")
    with pytest.raises(AtelierError, match="no row 3"):
        find(index=3)
    with pytest.raises(AtelierError, match="0 LoRAs"):
        find(base="sdxl")


def test_without_a_rescan_the_folders_are_left_alone(place):
    with pytest.raises(AtelierError, match="switch rescan on"):
        find(rescan=False)
    find()
    (place / "dawn.safetensors").unlink()
    assert len(find(index=1, rescan=False).args[0].splitlines()) == 3
    assert len(find().args[0].splitlines()) == 2


def test_unreadable_files_are_told_and_hide_nothing(place):
    (place / "bad.safetensors").write_bytes(b"")
    table, name, _ = find(index=0).args
    assert name == "dawn.safetensors"  # what cannot be read stands last
    assert table.count("not a whole safetensors file") == 2  # its row, and what the scan says
    with pytest.raises(AtelierError, match="not a whole safetensors file"):
        find("bad")


def test_a_name_that_means_another_file_is_refused(place, folders):
    import folder_paths

    other = folders / "more"
    write_lora(other / "dusk.safetensors", some_lora(7, **{"modelspec.trigger_phrase": "other"}))
    folder_paths.folder_names_and_paths["loras"][0].append(str(other))
    with pytest.raises(AtelierError, match="Rename one of the two"):
        find("other")
    assert find("ohwx").args[1] == "dusk.safetensors"


def test_results_are_fresh_when_files_or_scores_change_and_only_then(place):
    for rescan in (True, False):
        find()
        before = stamp(rescan=rescan)
        find()
        assert stamp(rescan=rescan) == before  # a run alone makes nothing new
        with opened() as registry:
            add_score(registry, resolve(registry, "dusk").hash, f"figure {rescan}", 0.7)
        scored = stamp(rescan=rescan)
        assert scored != before
        write_lora(place / f"further{rescan}.safetensors", some_lora(9 + rescan))
        assert (stamp(rescan=rescan) != scored) is rescan
    assert stamp(query=None) == stamp(query="")  # a linked query is not known yet


def test_a_cancel_keeps_what_was_read(place):
    import comfy.model_management as memory

    from flux_atelier.nodes import host

    original = host.Progress.at

    def cancel_at_two(self, value, picture=None):
        if value == 2:
            memory.interrupt_current_processing()
        original(self, value, picture)

    host.Progress.at = cancel_at_two
    try:
        with pytest.raises(memory.InterruptProcessingException):
            find()
    finally:
        host.Progress.at = original
    with opened() as registry:
        assert len(search(registry)) == 2
    assert len(find().args[0].splitlines()) == 3


# Files that nodes have made


def test_what_nodes_make_is_noted_with_its_parents(place):
    from flux_atelier.nodes.registry import note_made
    from flux_atelier.nodes.wire import from_wire

    find()
    with torch.inference_mode():  # as the executor calls it
        wires = [find(word).args[2] for word in ("ohwx", "sks")]
        loras = [from_wire(wire, "wire") for wire in wires]
        made = merge([("lora0", 0.5, loras[0]), ("lora1", 0.5, loras[1])]).lora
        note_made(write_lora(place / "both.safetensors", made), made, loras, {"style figure": 0.5})
        note_made(write_lora(place / "child.safetensors", some_lora(8)), some_lora(8), ["both.safetensors"])
    with opened() as registry:
        entry = resolve(registry, "both")
        assert entry.scores == {"style figure": 0.5}
        assert {p.name for p in entry.parents} == {"dusk", "dawn"}
        assert {(k.generation, k.name) for k in family(registry, entry.hash)} == {
            (-1, "dusk"),
            (-1, "dawn"),
            (1, "child"),
        }
        assert {p.hash for p in entry.parents} == {identity(lora) for lora in loras}


def test_a_registry_that_fails_costs_no_lora_and_is_told(place, caplog, monkeypatch):
    from flux_atelier.nodes import registry as room

    (place.parent / "flux_atelier").mkdir()
    (place.parent / "flux_atelier" / "loras.sqlite").mkdir()
    path = write_lora(place / "made.safetensors", some_lora(5))
    with caplog.at_level(logging.WARNING, "flux_atelier"):
        room.note_made(path, some_lora(5))
        room.note_made(path, some_lora(5), ["no such.safetensors"])
    assert caplog.text.count("is written, but the registry does not have it") == 2
    assert path.is_file()


# Headers


def test_reading_a_header_changes_nothing(place):
    path = place / "dusk.safetensors"
    before = path.read_bytes()
    name, report = edit("dusk.safetensors").args
    assert name == "dusk.safetensors"
    assert "modelspec.trigger_phrase = ohwx" in report
    assert hashlib.sha256(before).hexdigest() in report
    assert path.read_bytes() == before


def test_an_edit_is_in_the_file_in_the_report_and_in_the_registry(place):
    path = place / "dusk.safetensors"
    weights = identity(read_lora(path))
    name, report = edit(
        "dusk.safetensors", trigger_words="ohwx, violet", title="Dusk", comment="-", more="my.key = a = b\n\nss_seed=7"
    ).args
    assert name == "dusk.safetensors"
    assert "modelspec.trigger_phrase: ohwx -> ohwx, violet" in report
    lora = read_lora(path)
    assert identity(lora) == weights
    assert lora.metadata["modelspec.title"] == "Dusk"
    assert lora.metadata["my.key"] == "a = b"
    assert lora.metadata["ss_seed"] == "7"
    assert lora.metadata["modelspec.hash_sha256"] == "0x" + lora.metadata["sshs_model_hash"]
    assert find("violet").args[1] == "dusk.safetensors"
    edit("dusk.safetensors", title="-")
    assert "modelspec.title" not in read_lora(path).metadata


def test_an_edit_under_another_name_leaves_the_file(place):
    before = (place / "dusk.safetensors").read_bytes()
    name, _ = edit("dusk.safetensors", author="me", save_as="mine").args
    assert name == "mine.safetensors"
    assert (place / "dusk.safetensors").read_bytes() == before
    assert read_lora(place / name).metadata["modelspec.author"] == "me"


def test_wrong_names_and_entries_are_told_before_the_queue(place):
    from flux_atelier.nodes.registry import EditLoraHeader

    def told(lora_name="dusk.safetensors", save_as="", more=""):
        return EditLoraHeader.validate_inputs(lora_name=lora_name, save_as=save_as, more=more)

    assert told() is True
    assert told(lora_name=None, save_as=None, more=None) is True
    assert "no LoRA" in told(lora_name="../../secret.safetensors")
    assert "leads out" in told(save_as="../up")
    assert "no entry" in told(more="nonsense")
    assert "follows from the file" in told(more="sshs_model_hash = 0")


def test_nodes_describe_themselves(place):
    from flux_atelier.nodes.registry import NODES

    for node in NODES:
        info = node.GET_NODE_INFO_V1()
        json.dumps(info)
        assert info["category"] == "Flux Atelier/LoRA"
        assert all(item.tooltip for item in node.GET_SCHEMA().inputs)
