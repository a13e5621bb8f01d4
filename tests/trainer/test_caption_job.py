"""Captioning jobs: variables, resume, locks, kills; and the captioners that are no model folder: taggers, endpoints."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny_captioners
from PIL import Image

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.captioners.endpoint import Endpoint, is_loopback
from flux_atelier.trainer.captioners.job import caption_items
from flux_atelier.trainer.captioners.ledger import FileLedger, Made
from flux_atelier.trainer.captioners.options import AskOptions, EndpointOptions, TaggerOptions
from flux_atelier.trainer.captioners.prompts import Ask, Item, check_template, clean, fill, split_turns
from flux_atelier.trainer.captioners.tagger import Tag, Tagger, choose, read_tags

ROOT = Path(__file__).resolve().parents[2]


class Echo:
    """Answers with what it was asked and the picture's width; remembers each batch."""

    prompt = "what is it"

    def __init__(self, name: str = "echo", **settings):
        self.name, self.settings, self.batches = name, settings, []

    def caption(self, pictures, asks):
        self.batches.append(len(pictures))
        return [" / ".join(ask.turns) + f" {picture.width}" for picture, ask in zip(pictures, asks, strict=True)]


@pytest.fixture
def items(tmp_path) -> list[Item]:
    folder = tmp_path / "10_dogs"
    folder.mkdir()
    found = []
    for i in range(7):
        Image.new("RGB", (10 + i, 10), (i, i, i)).save(folder / f"big_dog-{i}.png")
        found.append(Item(f"row{i}", folder / f"big_dog-{i}.png", tags=f"dog, t{i}", captions={"wd": f"tagged {i}"}))
    return found


def run(items, captioner, ledger, **options):
    return list(caption_items(items, captioner, AskOptions(**options), ledger))


# --- texts -----------------------------------------------------------------------------------------------------------


def test_variables_by_hand():
    item = Item("1", Path("/a/dogs/big_red-dog.png"), tags="dog, {name}", style="ukiyo-e", captions={"wd x": "tags"})
    text = "{trigger}|{name}|{folder}|{style}|{tags}|{caption:wd x}|{not this}|{answer}"
    assert fill(text, item, "sks", "A.") == "sks|big red dog|dogs|ukiyo-e|dog, {name}|tags|{not this}|A."
    with pytest.raises(AtelierError, match="no caption by joy"):
        fill("{caption:joy}", item)


@pytest.mark.parametrize("text", ["{tag}", "{caption}", "{tags:wd}", "{answer}"])
def test_unknown_variables_are_named(text):
    with pytest.raises(AtelierError, match=text[1:-1]):
        check_template(text)
    check_template("{answer} {caption:wd} {tags}", answer=True)


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [("", ("",)), ("a\nb", ("a\nb",)), ("a\n---\nb", ("a", "b")), (" a \n --- \n\n---\nb---c", ("a", "b---c"))],
)
def test_turns(prompt, turns):
    assert split_turns(prompt) == turns


def test_thoughts_are_no_answer():
    assert clean("<think>a dog?\n</think>\n A dog. ") == "A dog."


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_by_hand(items, tmp_path):
    ledger, echo = FileLedger(tmp_path / "made.jsonl"), Echo()
    steps = run(items, echo, ledger, batch_size=3, caption="{trigger}, {answer}", trigger="sks")
    assert [(s.done, s.total) for s in steps] == [(3, 7), (6, 7), (7, 7)]
    assert echo.batches == [3, 3, 1]
    assert [m.text for m in steps[0].made] == ["sks, what is it 10", "sks, what is it 11", "sks, what is it 12"]
    assert [m.row for s in steps for m in s.made] == [i.id for i in items]
    assert run([], echo, ledger)[-1].total == 0


def test_each_batch_is_kept_before_it_is_told(items, tmp_path):
    ledger = FileLedger(tmp_path / "made.jsonl")
    for step in caption_items(items, Echo(), AskOptions(batch_size=2), ledger):
        assert len(FileLedger(ledger.path).made) == step.done


def test_a_job_goes_on_where_it_stopped(items, tmp_path):
    path = tmp_path / "made.jsonl"
    job = caption_items(items, Echo(), AskOptions(batch_size=3), FileLedger(path))
    next(job)
    job.close()
    echo = Echo()
    steps = run(items, echo, FileLedger(path), batch_size=3)
    assert echo.batches == [3, 1]
    assert (steps[-1].known, steps[-1].done) == (3, 7)
    whole = FileLedger(tmp_path / "whole.jsonl")
    run(items, Echo(), whole, batch_size=3)
    assert FileLedger(path).made == whole.made
    again = Echo()
    assert run(items, again, FileLedger(path))[-1].known == 7
    assert again.batches == []


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, 0),
        ({"prompt": "what is it"}, 0),  # the default, written out
        ({"batch_size": 1}, 0),
        ({"trigger": "sks"}, 0),  # in no text
        ({"prompt": "who"}, 7),
        ({"system": "be kind"}, 7),
        ({"caption": "a. {answer}"}, 7),
    ],
)
def test_what_is_asked_again_when_something_changes(items, tmp_path, change, asked):
    ledger, echo = FileLedger(tmp_path / "made.jsonl"), Echo()
    run(items, Echo(), ledger)
    run(items, echo, ledger, **change)
    assert sum(echo.batches) == asked


def test_only_rows_whose_words_changed_are_asked_again(items, tmp_path):
    ledger, echo = FileLedger(tmp_path / "made.jsonl"), Echo()
    run(items, Echo(), ledger, prompt="{tags}")
    items[2] = Item(items[2].id, items[2].file, tags="cat")
    items[4] = Item(items[4].id, items[4].file, digest="other bytes", tags=items[4].tags)
    made = run(items, echo, ledger, prompt="{tags}")[-1].made
    assert [m.row for m in made] == ["row2", "row4"]
    other = Echo(temperature=1.0)
    run(items, other, ledger, prompt="{tags}")
    assert sum(other.batches) == 7
    another = Echo("another")
    run(items, another, ledger, prompt="{tags}")
    assert sum(another.batches) == 7


def test_human_captions_are_left_alone(items, tmp_path):
    ledger, echo = FileLedger(tmp_path / "made.jsonl", human=frozenset({"row1", "row6"})), Echo()
    last = run(items, echo, ledger, batch_size=2)[-1]
    assert (last.done, last.locked, sum(echo.batches)) == (7, 2, 5)
    assert {row for row, _, _ in ledger.made} == {"row0", "row2", "row3", "row4", "row5"}


def test_a_caption_a_person_writes_meanwhile_is_left_alone(items, tmp_path):
    ledger = FileLedger(tmp_path / "made.jsonl")

    class Slow(Echo):
        def caption(self, pictures, asks):
            ledger.human |= {"row0"}  # typed while the model was at work
            return super().caption(pictures, asks)

    last = run(items, Slow(), ledger)[-1]
    assert (last.done, last.locked) == (7, 1)
    assert "row0" not in {row for row, _, _ in ledger.made}


def test_pictures_that_fail_are_named_and_the_others_captioned(items, tmp_path):
    items[1].file.write_bytes(b"no picture")
    items[3] = Item("row3", items[3].file)

    class Silent(Echo):
        def caption(self, pictures, asks):
            return [
                "" if p.width == 15 else text for p, text in zip(pictures, super().caption(pictures, asks), strict=True)
            ]

    steps = run(items, Silent(), FileLedger(tmp_path / "made.jsonl"), prompt="{caption:wd}", batch_size=4)
    failed = {f.row: f.reason for s in steps for f in s.failed}
    assert set(failed) == {"row1", "row3", "row5"}
    assert "big_dog-1.png" in failed["row1"]
    assert "no caption by wd" in failed["row3"]
    assert "answered nothing" in failed["row5"]
    assert steps[-1].done == 7


def test_what_was_kept_stays_when_the_captioner_breaks(items, tmp_path):
    class Breaks(Echo):
        def caption(self, pictures, asks):
            if len(self.batches) == 2:
                raise AtelierError("The server is gone. Start it.")
            return super().caption(pictures, asks)

    with pytest.raises(AtelierError, match="server is gone"):
        run(items, Breaks(), FileLedger(tmp_path / "made.jsonl"), batch_size=2)
    assert len(FileLedger(tmp_path / "made.jsonl").made) == 4


def test_a_batch_cut_short_in_the_file_is_passed_over(tmp_path):
    path = tmp_path / "made.jsonl"
    first, second = Made("a", "A \u2028 line\nand another", "m", "h"), Made("b", "B", "m", "h", 3)
    FileLedger(path).commit([first])
    whole = path.read_bytes()
    FileLedger(path).commit([second])
    path.write_bytes(path.read_bytes()[:-20])
    assert list(FileLedger(path).made.values()) == [first]
    FileLedger(path).commit([second])
    assert list(FileLedger(path).made.values()) == [first, second]
    assert path.read_bytes().startswith(whole)


KILLED = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("flux_atelier", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
package = importlib.util.module_from_spec(spec); sys.modules["flux_atelier"] = package; spec.loader.exec_module(package)
from pathlib import Path
from flux_atelier.trainer.captioners.job import caption_items
from flux_atelier.trainer.captioners.ledger import FileLedger
from flux_atelier.trainer.captioners.options import AskOptions
from flux_atelier.trainer.captioners.prompts import Item
class Slow:
    name, prompt, settings = "echo", "what is it", {{}}
    def caption(self, pictures, asks):
        with open({log!r}, "a") as opened: opened.writelines(f"{{p.width}}\\n" for p in pictures)
        time.sleep(0.05)
        return [f"what is it {{p.width}}" for p in pictures]
items = [Item(f"row{{i}}", Path({folder!r}) / f"big_dog-{{i}}.png") for i in range(7)] * 40
items = [Item(f"{{n}}", item.file) for n, item in enumerate(items)]
for step in caption_items(items, Slow(), AskOptions(batch_size=4), FileLedger(Path({path!r}))): print(step.done, flush=True)
"""


def test_a_killed_job_loses_at_most_the_batch_under_way(items, tmp_path):
    log, path = tmp_path / "asked.txt", tmp_path / "made.jsonl"
    code = KILLED.format(root=str(ROOT), log=str(log), folder=str(items[0].file.parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as job:
        told = 0
        while told < 20:
            told = int(job.stdout.readline())
        os.kill(job.pid, signal.SIGKILL)
    asked, kept = len(log.read_text().splitlines()), len(FileLedger(path).made)
    assert told <= kept
    assert 0 <= asked - kept <= 4
    assert kept < 280
    rest = Echo()
    rows = [Item(str(n), items[n % 7].file) for n in range(280)]
    run(rows, rest, FileLedger(path), batch_size=4)
    assert sum(rest.batches) == 280 - kept


# --- taggers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagger_folder(tmp_path):
    tiny_captioners.tagger(tmp_path / "wd-tiny")
    return tmp_path / "wd-tiny"


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


def test_scores_by_hand(tagger_folder):
    blue, half = Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGB", (8, 4), (255, 0, 0))
    first, second = Tagger(tagger_folder, TaggerOptions()).scores([blue, half])
    assert {t.name: round(t.score, 4) for t in first} == {
        "blue_sky": round(sigmoid(4), 4), "^_^": 0.5, "general": round(sigmoid(2), 4), "some_painter": round(sigmoid(4), 4),
    }  # fmt: skip
    # Half a square is red, the other half white: red everywhere, blue in one half; the padding is centred.
    scores = {t.name: t.score for t in second}
    assert scores["reimu_(touhou)"] == pytest.approx(sigmoid(4), abs=1e-3)
    assert scores["blue_sky"] == pytest.approx(sigmoid(0), abs=0.1)
    assert [t.score for t in first] == sorted((t.score for t in first), reverse=True)


def test_tags_in_a_job(tagger_folder, items, tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    options = TaggerOptions(general=0.6, rating=True)
    assert Tagger(tagger_folder, options).caption([red], [Ask(("",))]) == ["reimu (touhou), general"]
    with pytest.raises(AtelierError, match="takes no text"):
        Tagger(tagger_folder, options).caption([red], [Ask(("what is it",))])
    ledger = FileLedger(tmp_path / "made.jsonl")
    step = run(items, Tagger(tagger_folder, TaggerOptions()), ledger)[-1]
    assert {made.text for made in step.made} == {"^_^"}
    assert step.made[0].model == "wd-tiny"


def test_thresholds_by_category():
    tags = [
        Tag("red_hat", "general", 0.9),
        Tag("who", "character", 0.8),
        Tag("x_y", "artist", 0.7),
        Tag("c", "general", 0.2),
    ]
    assert choose(tags, TaggerOptions()) == ["red hat"]
    assert choose(tags, TaggerOptions(character=0.8)) == ["who", "red hat"]
    assert choose(tags, TaggerOptions(character=1, artist=0.7, general=0.1, spaces=False)) == ["x_y", "red_hat", "c"]
    assert choose(tags, TaggerOptions(general=0.1, left_out="Red hat, other")) == ["c"]


def test_what_a_tagger_lacks_is_named(tagger_folder, monkeypatch):
    tags = tagger_folder / "selected_tags.csv"
    tags.write_text("\n".join(tiny_captioners.TAGS.splitlines()[:-1]))
    with pytest.raises(AtelierError, match=r"5 scores, but selected_tags.csv names 4"):
        Tagger(tagger_folder, TaggerOptions())
    tags.write_text("id,tag\n1,a\n")
    with pytest.raises(AtelierError, match="no columns name and category"):
        read_tags(tags)
    tags.write_text(tiny_captioners.TAGS)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AtelierError, match="pip install onnxruntime"):
        Tagger(tagger_folder, TaggerOptions())
    monkeypatch.undo()
    (tagger_folder / "model.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(AtelierError, match="not a whole ONNX model"):
        Tagger(tagger_folder, TaggerOptions())
    (tagger_folder / "model.onnx").unlink()
    with pytest.raises(AtelierError, match=r"no file .*model.onnx"):
        Tagger(tagger_folder, TaggerOptions())


# --- endpoints -------------------------------------------------------------------------------------------------------


@contextmanager
def server(*replies):
    """A chat server on loopback: gives each (status, body) in turn, then answers every request; yields (url, requests)."""
    seen, left = [], list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, dict(self.headers)))
            status, reply = left.pop(0) if left else (200, None)
            if reply is None:
                parts = body["messages"][-1]["content"]
                words = parts if isinstance(parts, str) else parts[-1]["text"]
                reply = {"choices": [{"message": {"content": f"<think>hm</think> {words}!"}}]}
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/v1", seen
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def endpoint(url: str, **options) -> Endpoint:
    return Endpoint(EndpointOptions(url=url, model="tiny", wait=0, **options))


RED = Image.new("RGB", (40, 20), (255, 0, 0))


def test_what_is_sent_and_what_comes_back():
    with server() as (url, seen):
        asks = [Ask(("what", "and then"), "be brief")]
        assert endpoint(url, longest_side=20, max_tokens=9).caption([RED], asks) == ["and then!"]
    (path, first, _), (_, second, _) = seen
    assert path == "/v1/chat/completions"
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("tiny", 9, 0.0)
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] == "what!"
    assert second["messages"][:2] == first["messages"]
    shown, words = first["messages"][1]["content"]
    kind, data = shown["image_url"]["url"].split(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (kind, sent.size, words["text"]) == ("data:image/jpeg;base64", (20, 10), "what")
    assert sent.getpixel((5, 5))[0] > 250


def test_answers_keep_the_order_of_the_pictures():
    with server() as (url, _):
        asks = [Ask((str(i),)) for i in range(8)]
        assert endpoint(url).caption([RED] * 8, asks) == [f"{i}!" for i in range(8)]


def test_an_endpoint_in_a_job(items, tmp_path):
    with server() as (url, _):
        steps = run(items, endpoint(url), FileLedger(tmp_path / "made.jsonl"), prompt="{name}", caption="sks {answer}")
    assert [m.text for m in steps[-1].made] == [f"sks big dog {i}!" for i in range(7)]


@pytest.mark.parametrize(
    ("replies", "tries", "told"),
    [
        ([(503, b"loading"), (429, b"slow down")], 3, None),
        ([(503, b"loading")] * 3, 3, "after 3 tries: status 503 loading"),
        ([(400, b"no\n images")], 1, "after 1 tries: status 400 no images"),
        ([(302, b"")], 1, "status 302"),
        ([(200, b"<html>")], 1, "not JSON"),
        ([(200, {"error": "x"})], 1, "another form"),
        ([(200, {"choices": [{"message": {"content": None}}]})], 1, "another form"),
    ],
)
def test_trouble_is_told(replies, tries, told):
    with server(*replies) as (url, seen):
        if told is None:
            assert endpoint(url).caption([RED], [Ask(("a",))]) == ["a!"]
        else:
            with pytest.raises(AtelierError, match=told):
                endpoint(url).caption([RED], [Ask(("a",))])
    assert len(seen) == tries


def test_nobody_at_the_address_is_told():
    with server() as (url, _):
        pass
    with pytest.raises(AtelierError, match=r"after 2 tries: .*refused"):
        endpoint(url, retries=1).caption([RED], [Ask(("a",))])


def test_a_proxy_does_not_see_what_stays_here(monkeypatch):
    with server() as (proxy, seen_by_proxy), server() as (url, seen):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        endpoint(url).caption([RED], [Ask(("a",))])
    assert (len(seen), len(seen_by_proxy)) == (1, 0)


def test_a_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "abc")
    with server() as (url, seen):
        endpoint(url, key_variable="TINY_KEY").caption([RED], [Ask(("a",))])
        monkeypatch.delenv("TINY_KEY")
        with pytest.raises(AtelierError, match="TINY_KEY is empty"):
            endpoint(url, key_variable="TINY_KEY").caption([RED], [Ask(("a",))])
    assert [headers.get("Authorization") for _, _, headers in seen] == ["Bearer abc"]


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("192.168.0.2", False),
        ("0.0.0.0", False), ("localhost.example.org", False), ("127.0.0.1.nip.io", False),
    ],
)  # fmt: skip
def test_loopback(host, here):
    assert is_loopback(host) is here
    url = f"http://[{host}]:1/v1" if ":" in host else f"http://{host}:1/v1"
    if here:
        endpoint(url)
        return
    with pytest.raises(AtelierError, match="Set allow_remote"):
        endpoint(url)
    endpoint(url, allow_remote=True)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8080", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(AtelierError, match="no http address"):
        endpoint(url)
