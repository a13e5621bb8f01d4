"""Headers: changed while the tensors stay, and hashes beside those of the programs that invented them."""

import hashlib
import json
from io import BytesIO

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.lora import header
from flux_atelier.core.lora.header import edit_header, fresh_hashes, hash_file, read_header

NAMES = ("lora_unet_single_blocks_0_linear1.lora_up.weight", "lora_unet_single_blocks_0_linear1.alpha", "other.diff_b")


def written(path, metadata, big=0):
    """A file of three dtypes, with `big` further float16 values."""
    rng = torch.Generator().manual_seed(3)
    tensors = {
        NAMES[0]: torch.randn(8 + big, generator=rng).half(),
        NAMES[1]: torch.tensor(4.0),
        NAMES[2]: torch.randn(5, 3, generator=rng).bfloat16(),
    }
    return write_tensors(path, tensors, metadata)


def data_of(path):
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def told(path):
    with safe_open(path, "pt") as opened:
        return opened.metadata()


def test_a_header_by_hand(tmp_path):
    text = b'{"__metadata__":{"a":"b"},"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    text += b" " * (-len(text) % 8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    found = read_header(path)
    assert found.metadata == {"a": "b"}
    assert found.tensors == {"x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    assert found.start == 8 + len(text)
    assert hash_file(path).tensors == hashlib.sha256(b"abc").hexdigest()
    assert hash_file(path).file == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_file(path).short == hashlib.sha256(path.read_bytes()).hexdigest()[:10].upper()


def test_an_edit_leaves_every_byte_of_the_tensors(tmp_path):
    path = written(tmp_path / "a.safetensors", {"keep": "me", "modelspec.title": "old", "drop": "x"})
    before, data = read_tensors(path)[0], data_of(path)
    differ = edit_header(path, {"modelspec.title": 'Träume\n"夜" \\ \x01', "drop": None, "empty": ""})
    assert differ["modelspec.title"] == ("old", 'Träume\n"夜" \\ \x01')
    assert differ["drop"] == ("x", "")
    assert "keep" not in differ
    assert data_of(path) == data
    after = read_tensors(path)[0]
    assert all(torch.equal(after[k], before[k]) and after[k].dtype == before[k].dtype for k in before)
    said = told(path)
    assert said["modelspec.title"] == 'Träume\n"夜" \\ \x01'
    assert said["keep"] == "me"
    assert "drop" not in said
    assert "empty" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_edit_into_another_file_leaves_the_source(tmp_path):
    path = written(tmp_path / "a.safetensors", {"a": "1"})
    whole = path.read_bytes()
    edit_header(path, {"a": "2"}, tmp_path / "sub" / "b.safetensors")
    assert path.read_bytes() == whole
    assert told(tmp_path / "sub" / "b.safetensors")["a"] == "2"


def test_an_edit_through_a_link_changes_the_file_and_keeps_the_link(tmp_path):
    (tmp_path / "store").mkdir()
    path = written(tmp_path / "store" / "a.safetensors", {"a": "1"})
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    edit_header(link, {"a": "2"})
    assert link.is_symlink()
    assert told(path)["a"] == told(link)["a"] == "2"


def test_an_edit_that_changes_nothing_writes_nothing(tmp_path):
    path = written(tmp_path / "a.safetensors", {"a": "1"})
    edit_header(path, {"a": "2"})
    before = path.stat()
    assert edit_header(path, {"a": "2"}) == {}
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def reference_hashes(tensors, metadata):
    """sshs_model_hash and sshs_legacy_hash by their definition: of the file with the ss_ entries alone."""
    kept = {k: v for k, v in metadata.items() if k.startswith("ss_")}
    whole = safetensors.torch.save(tensors, kept)
    opened = BytesIO(whole)
    opened.seek(0x100000)
    legacy = hashlib.sha256(opened.read(0x10000)).hexdigest()[:8]
    return hashlib.sha256(whole[8 + int.from_bytes(whole[:8], "little") :]).hexdigest(), legacy


@pytest.mark.parametrize("big", [0, 400_000, 550_000, 2_000_000], ids=["small", "short of 1 MiB", "in part", "beyond"])
@pytest.mark.parametrize("metadata", [{}, {"ss_a": "é\n", "ss_b": "2"}, {"x": "1" * 999, "ss_a": "1"}])
def test_kohyas_hashes_beside_their_definition(tmp_path, big, metadata):
    path = written(tmp_path / "a.safetensors", metadata, big)
    model, legacy = reference_hashes(read_tensors(path)[0], metadata)
    found = hash_file(path)
    assert (found.tensors, found.legacy) == (model, legacy)
    assert fresh_hashes(path, metadata) == {
        "sshs_model_hash": model,
        "sshs_legacy_hash": legacy,
        "modelspec.hash_sha256": f"0x{model}",
    }


def test_hashes_in_the_header_become_fresh(tmp_path):
    stale = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "1" * 8, "modelspec.hash_sha256": "0x2", "ss_seed": "1"}
    path = written(tmp_path / "a.safetensors", stale, 600_000)
    edit_header(path, {"ss_training_comment": "a longer header moves the tensors"})
    said, (model, legacy) = told(path), reference_hashes(read_tensors(path)[0], told(path))
    assert said["sshs_model_hash"] == model == hash_file(path).tensors
    assert said["sshs_legacy_hash"] == legacy == hash_file(path).legacy
    assert said["modelspec.hash_sha256"] == f"0x{model}"


def test_the_tensors_hash_outlives_edits_and_the_files_does_not(tmp_path):
    path = written(tmp_path / "a.safetensors", {})
    before = hash_file(path)
    edit_header(path, {"modelspec.author": "me"})
    assert hash_file(path).tensors == before.tensors
    assert hash_file(path).file != before.file


@pytest.mark.parametrize(
    "key", ["sshs_model_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "format", "__metadata__", "", " "]
)
def test_what_follows_from_the_file_is_not_written_by_hand(tmp_path, key):
    path = written(tmp_path / "a.safetensors", {})
    whole = path.read_bytes()
    with pytest.raises(AtelierError):
        edit_header(path, {key: "x"})
    assert path.read_bytes() == whole


def test_a_header_too_long_to_open_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "LARGEST", 1000)
    path = written(tmp_path / "a.safetensors", {})
    whole = path.read_bytes()
    with pytest.raises(AtelierError, match="1,000 is the most"):
        edit_header(path, {"a": "x" * 1000})
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_cut_file_is_told(tmp_path, cut):
    path = written(tmp_path / "a.safetensors", {})
    path.write_bytes(path.read_bytes()[:cut])
    for look in (read_header, hash_file, lambda p: edit_header(p, {"a": "b"})):
        with pytest.raises(AtelierError, match="not a whole safetensors file"):
            look(path)
    with pytest.raises(AtelierError, match="no file"):
        read_header(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = written(tmp_path / "a.safetensors", {"a": "1"})
    whole = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(header.shutil, "copyfileobj", full)
    with pytest.raises(AtelierError, match="disk is full"):
        edit_header(path, {"a": "2"})
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    path = written(tmp_path / "a.safetensors", {})
    with pytest.raises(AtelierError, match="could not be written"):
        edit_header(path, {"a": "2"}, path / "b.safetensors")


def test_the_header_we_write_is_as_long_as_safetensors_own(tmp_path):
    path = written(tmp_path / "a.safetensors", {"ss_one": json.dumps({"é": [1, "\u2028"]}), "b": "\x01\x7f\\"})
    found, whole = read_header(path), path.read_bytes()
    packed = header._packed(found.metadata, found.tensors)
    assert len(packed) == found.start
    assert json.loads(packed[8:]) == json.loads(whole[8 : found.start])
