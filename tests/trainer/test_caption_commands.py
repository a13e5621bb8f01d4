"""Captions from the command line: a folder, then models, a tagger's and an endpoint's captions, styles, fusion, lint, edits."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny_captioners
from PIL import Image

from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import WrittenCaption
from flux_atelier.core.dataset.view import View
from flux_atelier.core.dataset.view_file import read_view
from flux_atelier.trainer.cli import main
from flux_atelier.trainer.commands import COMMANDS, captions


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, command in captions.COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, command)


@pytest.fixture
def data(tmp_path, capsys):
    """A dataset file of five pictures, the second captioned by a person."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (20 + i, 12), (40 * i, 9, 200 - 30 * i)).save(folder / f"p{i}.png")
    (folder / "p1.txt").write_text("a person wrote this")
    run(capsys, "load", folder, "--out", tmp_path / "data.json")
    return tmp_path / "data.json"


def run(capsys, *words, code=0):
    assert main([str(w) for w in words]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def texts(data) -> dict[str, list[str]]:
    return {row.path: [c.text for c in row.captions] for row in read_view(data).dataset().rows}


@contextmanager
def server():
    """A chat endpoint that answers with how many letters it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            words = asked["messages"][-1]["content"][-1]["text"]
            body = json.dumps({"choices": [{"message": {"content": f"told of {words}"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/v1"
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def test_a_model_captions_and_goes_on(data, tmp_path, capsys):
    tiny_captioners.llava(tmp_path / "tiny")
    words = (
        "caption-model",
        tmp_path / "tiny",
        data,
        "--out",
        data,
        "--max-tokens",
        4,
        "--batch-size",
        2,
        "--device",
        "cpu",
    )
    said = run(capsys, *words)
    assert "4 captions by tiny, 1 left alone, a person captioned them" in said
    assert "5 of 5" in said
    found = texts(data)
    assert found["p1.png"] == ["a person wrote this"]
    assert all(found.values())
    assert "0 captions by tiny, 4 were there already" in run(capsys, *words)
    assert texts(data) == found


def test_an_endpoint_over_a_store_file_and_a_filter(data, capsys):
    store = read_view(data).store
    with server() as url:
        said = run(capsys, "caption-endpoint", store, "--out", data, "--url", url, "--model", "far", "--name", "mine",
                   "--prompt", "{name}", "--filter", "width > 22 and not captioned", "--caption", "sks, {answer}")  # fmt: skip
    assert "2 captions by mine" in said
    assert texts(data)["p3.png"] == ["sks, told of p3"]
    assert texts(data)["p0.png"] == []
    assert len(read_view(data)) == 5
    assert "another machine" in run(capsys, "caption-endpoint", data, "--url", "http://10.0.0.1:1/v1", code=2)


def test_fuse_lint_and_edit(data, capsys):
    said = {
        "p0.png": ("a red fox, snow, an oil painting", "fox, oil painting"),
        "p2.png": ("a boat, an oil painting",) * 2,
    }
    view = read_view(data)
    with Store(view.store, made=False) as store:
        ids = {row.path: row.id for row in view.rows()}
        for path, pair in said.items():
            store.caption({ids[path]: [WrittenCaption(t, "model", m) for t, m in zip(pair, "ab", strict=True)]}, by="m")
    told = run(capsys, "fuse", data, "--out", data, "--prefix", "sks")
    assert "2 fused, 2 without enough support, 1 a person's" in told
    assert "snow  (a)" in told
    before = texts(data)
    assert set(before["p2.png"][0].split(", ")) == {"sks", "boat", "oil painting"}

    told = run(capsys, "lint", data, "--out", data, "--trigger", "ohwx", "--filter", "caption:fox")
    assert "choose apply" in told
    assert texts(data) == before
    run(capsys, "lint", data, "--out", data, "--trigger", "ohwx", "--filter", "caption:fox", "--apply")
    assert texts(data)["p0.png"][0].startswith("ohwx, sks, ")
    assert texts(data)["p2.png"] == before["p2.png"]
    assert len(read_view(data)) == 5

    edit = ("edit-captions", data, "--out", data, "--find", "sks, ", "--apply")
    assert "2 captions changed" in run(capsys, *edit)
    assert "sks" not in " ".join(text for found in texts(data).values() for text in found)
    assert "no caption changed" in run(capsys, *edit)
    assert "nothing to do" in run(capsys, "edit-captions", data, code=2)
    with Store(view.store, made=False) as store:
        assert store.undo() == "caption"
        assert "sks" in " ".join(c.text for row in View.of(store).rows() for c in row.captions)


def test_tags_and_styles(data, tmp_path, capsys):
    tiny_captioners.tagger(tmp_path / "wd-tiny")
    assert "4 captions by wd-tiny" in run(capsys, "caption-tags", tmp_path / "wd-tiny", data, "--out", data, "--rating")
    assert texts(data)["p0.png"] == ["blue sky, ^_^, general"]
    tiny_captioners.siglip(tmp_path / "clip-tiny")
    words = ("--axes", "medium", "--temperature", 0.001, "--captions", "--device", "cpu")
    said = run(capsys, "style", tmp_path / "clip-tiny", data, "--out", data, *words)
    assert "nothing stands out in 0" in said
    rows = read_view(data).rows()
    assert all(tag.startswith("medium:") for row in rows for tag in row.tags)
    assert texts(data)["p0.png"] == [rows[0].tags[0].removeprefix("medium:")]


def test_what_is_missing_is_told(data, tmp_path, capsys):
    assert "no model folder" in run(capsys, "caption-model", tmp_path / "gone", data, code=2)
    assert "selected_tags.csv" in run(capsys, "caption-tags", tmp_path, data, code=2)
    assert "no config.json" in run(capsys, "style", tmp_path, data, "--out", data, code=2)
    assert "no dataset store" in run(capsys, "lint", tmp_path / "gone.db", code=2)
    assert "not understood" in run(capsys, "fuse", data, "--weight-rules", "joy", code=2)
