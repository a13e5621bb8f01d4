"""The gallery's server side: its routes, hostile requests, and the Review Dataset node in a real ComfyUI."""

import asyncio
import json
import math
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from comfy_process import Client, Server
from PIL import Image

from flux_atelier.core.dataset.kept_view import keep_view
from flux_atelier.core.dataset.opening import store_name
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.view import View

ROOT = Path(__file__).resolve().parents[2]
HOME = "/flux_atelier/datasets"
COLORS = ("teal", "orange", "navy", "olive")


def draw_pictures(folder: Path) -> Path:
    """Four small pictures, the last a copy of the first, one with a caption."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, color in enumerate(COLORS):
        noise = Image.fromarray(rng.integers(0, 256, (24, 32), np.uint8)).resize((96, 72)).convert("RGB")
        Image.blend(noise, Image.new("RGB", (96, 72), color), 0.4).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "0.txt").write_text("a sea")
    return folder


@pytest.fixture
def view(folders, tmp_path):
    """A scanned dataset below ComfyUI's output folder, with a score that is no number."""
    pictures = draw_pictures(folders / "input" / tmp_path.name)
    place = folders / "output" / "flux_atelier" / "datasets" / store_name(pictures)
    with Store(place / "atelier.db") as store:
        finish(scan(store, list_folder(pictures)))
        first = store.rows(store.ids()[:1])[0]
        store.put([replace(first, scores={**first.scores, "odd": math.inf})])
        return View.of(store)


class Routes:
    """What the pack asks of ComfyUI's server: its table of routes."""

    def __init__(self):
        from aiohttp import web

        self.routes = web.RouteTableDef()


@pytest.fixture
def ask(comfyui, view, monkeypatch):
    """Ask the routes over HTTP as they are registered: status, headers, JSON or bytes of each request in turn."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from yarl import URL

    from flux_atelier.nodes import gallery, host

    server = Routes()
    monkeypatch.setattr(host, "prompt_server", lambda: server)
    gallery.register.cache_clear()
    gallery.register()
    gallery.register.cache_clear()

    async def one(client, method, path, said=None, **more):
        if said is not None:
            more["json"] = said
        async with client.request(method, URL(path, encoded=True), **more) as answer:
            body = await answer.read()
            told = json.loads(body) if answer.content_type == "application/json" else body
            return answer.status, answer.headers, told

    async def together(requests):
        app = web.Application(client_max_size=100 * 2**20)
        app.add_routes(server.routes)
        async with TestClient(TestServer(app)) as client:
            return [await one(client, *args[:3], **(args[3] if len(args) > 3 else {})) for args in requests]

    yield lambda *requests: asyncio.run(together(requests))
    gallery.stores.close()


def place(view: View) -> str:
    return f"{HOME}/{view.store.parent.name}"


def home(view: View) -> str:
    return f"{place(view)}/views/{keep_view(view)}"


# --- the routes ------------------------------------------------------------------------------------------------------


def test_a_view_and_its_rows_are_told(ask, view):
    (status, headers, told), (_, _, page) = ask(("GET", home(view)), ("GET", f"{home(view)}/rows?offset=1&limit=2"))
    assert status == 200
    assert "Access-Control-Allow-Origin" not in headers
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert told["counts"] == {"keep": 0, "reject": 0, "undecided": 5, "left_out": 0}
    assert (told["total"], told["current"], told["splits"]) == (5, True, {"train": 5})
    assert "sharpness" in told["scores"]
    assert {"sharpness", "tag:", "width"} <= set(told["names"])
    assert (page["total"], [r["path"] for r in page["rows"]]) == (5, ["1.png", "2.png"])
    fields = "id path width height decision stars split repeats tags captions reason by digest crop boxes notes scores left_out parent"
    assert set(page["rows"][0]) == set(fields.split())


def test_what_is_no_number_becomes_null(ask, view):
    ((_, _, page),) = ask(("GET", f"{home(view)}/rows?filter=captioned"))
    (row,) = page["rows"]
    assert row["scores"]["odd"] is None
    assert row["captions"] == [{"text": "a sea", "author": "human", "model": ""}]


def test_decisions_stay_after_the_stores_were_closed_and_are_taken_back(ask, view):
    from flux_atelier.nodes import gallery

    first, second = view.ids[:2]
    (_, _, one), (_, _, many) = ask(
        ("POST", f"{home(view)}/decide", {"ids": [first], "decision": "keep"}),
        (
            "POST",
            f"{home(view)}/decide",
            {"filter": "undecided and width > 1", "decision": "reject", "reason": "ünlike"},
        ),
    )
    assert (one["changed"], many["changed"]) == (1, 4)
    assert many["revision"] == one["revision"] + 1
    gallery.stores.close()
    (_, _, told), (_, _, page), (_, _, undone), (_, _, again) = ask(
        ("GET", home(view)),
        ("GET", f"{home(view)}/rows?filter=rejected&order=-path"),
        ("POST", f"{place(view)}/undo", {}),
        ("GET", home(view)),
    )
    assert told["counts"] == {"keep": 1, "reject": 4, "undecided": 0, "left_out": 0}
    assert not told["current"]
    assert page["rows"][-1] | {"id": second, "reason": "ünlike", "by": "human"} == page["rows"][-1]
    assert undone["undone"] == "reject"
    assert again["counts"]["undecided"] == 4
    assert len(view.dataset().kept) == 5


def test_stars_tags_captions_and_crops(ask, view):
    own = view.ids[0]
    answers = ask(
        ("POST", f"{home(view)}/stars", {"ids": [own], "stars": 5}),
        ("POST", f"{home(view)}/tags", {"ids": [own], "add": ["sea 🌊"], "remove": []}),
        ("POST", f"{home(view)}/caption", {"id": own, "texts": ["line one\nline two", "второй"]}),
        ("POST", f"{home(view)}/crop", {"id": own, "crop": [0, 0, 48, 72]}),
        ("GET", f"{home(view)}/rows?filter=stars%20==%205"),
        ("GET", f"{place(view)}/pictures/{own}?side=64&done=1"),
        ("GET", f"{place(view)}/pictures/{own}?side=64"),
    )
    assert [status for status, _, _ in answers] == [200] * 7
    (row,) = answers[4][2]["rows"]
    assert (row["stars"], row["tags"], row["crop"]) == (5, ["sea 🌊"], [0, 0, 48, 72])
    assert [c["text"] for c in row["captions"]] == ["line one\nline two", "второй"]
    assert Image.open(BytesIO(answers[5][2])).size == (43, 64)
    assert Image.open(BytesIO(answers[6][2])).size == (64, 48)


def test_a_variant_is_drawn_as_its_view_has_it(ask, view):
    own = view.ids[1]
    turned = view.with_variants({own: [{"ops": [{"name": "rotate", "turns": 1}]}]})
    key = keep_view(turned)
    plain, done, row = ask(
        ("GET", f"{place(view)}/pictures/{own}%2B1?done=1"),
        ("GET", f"{place(view)}/pictures/{own}%2B1?done=1&view={key}"),
        ("POST", f"{place(view)}/views/{key}/decide", {"ids": [f"{own}+1"], "decision": "keep"}),
    )
    assert Image.open(BytesIO(plain[2])).size == (96, 72)
    assert Image.open(BytesIO(done[2])).size == (72, 96)
    assert (row[0], row[2]["changed"]) == (200, 1)


def test_thumbs_and_pictures_are_remembered_by_the_browser(ask, view):
    own = view.ids[0]
    thumb, picture = f"{place(view)}/thumbs/{own}", f"{place(view)}/pictures/{own}"
    (status, headers, body), (_, drawn, _) = ask(("GET", thumb), ("GET", picture))
    assert (status, headers["Content-Type"].split("/")[0]) == (200, "image")
    assert "immutable" in headers["Cache-Control"]
    assert headers["ETag"] == f'"{view.rows(0, 1)[0].digest}"'
    assert Image.open(BytesIO(body)).size == (96, 72)
    unchanged, also = ask(
        ("GET", thumb, None, {"headers": {"If-None-Match": headers["ETag"]}}),
        ("GET", picture, None, {"headers": {"If-None-Match": drawn["ETag"]}}),
    )
    assert (unchanged[0], unchanged[2], also[0], also[2]) == (304, b"", 304, b"")


def test_groups_and_pictures_alike(ask, view):
    groups, alike = f"{home(view)}/groups?offset=0&limit=5", f"{home(view)}/similar/{view.ids[0]}?n=2"
    (status, _, first), (_, _, near) = ask(("GET", groups), ("GET", alike))
    assert (status, first["pending"]) == (200, True)
    assert near["rows"][0]["distance"] == 0
    until = time.monotonic() + 60
    while "pending" in (told := ask(("GET", groups))[0][2]):
        assert time.monotonic() < until
    (group,) = told["groups"]
    assert (told["total"], {row["path"] for row in group["rows"]}) == (1, {"0.png", "4.png"})
    assert group["kept"] == view.ids[0]  # it has a caption
    assert group["why"][0][2] == "same file"


# --- hostile requests ------------------------------------------------------------------------------------------------


def test_names_lead_nowhere_else(ask, view, folders):
    (folders / "output" / "atelier.db").write_bytes((view.store).read_bytes())
    key, own = keep_view(view), view.ids[0]
    stores = ("..", "..%2F..", "%2Fetc", "..%5C..", "nobody", "%00", f"{view.store.parent.name}%2F..", "x" * 300)
    outside = ask(*(("GET", f"{HOME}/{name}/thumbs/{own}") for name in stores))
    assert {status for status, _, _ in outside} <= {400, 404}
    keys = ("..%2F..%2Fatelier", "0" * 16, key.upper() + "A", "%00" * 16, "%C3%BC")
    views = ask(*(("GET", f"{place(view)}/views/{name}/rows") for name in keys))
    ids = ("..%2F0.png", "0.png", "%2Fetc%2Fpasswd", "nobody", "%00", "'%20OR%201--", "x" * 3000)
    rows = ask(*(("GET", f"{place(view)}/{kind}/{name}") for name in ids for kind in ("thumbs", "pictures")))
    near = ask(
        ("GET", f"{home(view)}/similar/nobody"),
        ("POST", f"{home(view)}/decide", {"ids": ["nobody"], "decision": "keep"}),
    )
    assert {status for status, _, _ in (*views, *rows, *near)} == {404}
    assert all(len(told["error"]) < 500 for _, _, told in (*views, *rows, *near) if isinstance(told, dict))
    assert view.current


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonx"]
)
@pytest.mark.parametrize("path", ["decide", "undo"])
def test_a_foreign_page_cannot_change_anything(ask, view, kind, path):
    data = json.dumps({"ids": list(view.ids), "decision": "reject"}).encode()
    target = f"{place(view)}/undo" if path == "undo" else f"{home(view)}/decide"
    ((status, _, told),) = ask(("POST", target, None, {"data": data, "headers": {"Content-Type": kind}}))
    assert status == 400
    assert "Send application/json" in told["error"]
    assert view.current
    ((status, _, _),) = ask(("GET", target))
    assert status == 405


BAD_BODIES = [
    b"", b"{", b"[]", b"null", b"NaN", b'"x"', b"[" * 500_000, b'{"ids": ' + b"[" * 100_000, b"\xff\xfe", b'{"ids": ["\\ud800"], "decision": "keep"}',
    b'{"ids": ["x"], "decision": NaN}', b'{"ids": ["x"], "decision": "keep", "decision": 1}', b'{"filter": "width >", "decision": "keep"}',
    b'{"filter": "__import__(\'os\')", "decision": "keep"}', b'{"filter": "' + b"not " * 600 + b'kept", "decision": "keep"}',
    b'{"filter": "x\\u0000", "decision": "keep"}', b'{"filter": "' + b"(" * 5000 + b'", "decision": "keep"}', b'{"ids": ' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_body_that_does_not_fit_is_told(ask, view, data):
    sent = {"data": data, "headers": {"Content-Type": "application/json"}}
    ((status, _, told),) = ask(("POST", f"{home(view)}/decide", None, sent))
    assert (status, len(told["error"]) < 500) == (400, True)
    assert view.current


def test_a_large_body_is_refused_and_many_ids_are_not(ask, view):
    sent = {"data": b" " * (10 * 2**20) + b"{}", "headers": {"Content-Type": "application/json"}}
    many = {"ids": list(view.ids) * 12_000, "decision": "keep"}
    wrong = {"ids": [f"{i:016x}" for i in range(60_000)], "decision": "keep"}
    large, fits, none = ask(
        ("POST", f"{home(view)}/decide", None, sent),
        ("POST", f"{home(view)}/decide", many),
        ("POST", f"{home(view)}/decide", wrong),
    )
    assert (large[0], "larger than 8 MB" in large[2]["error"]) == (400, True)
    assert (fits[0], fits[2]["changed"]) == (200, 5)
    assert none[0] == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=-1", "limit=NaN", "limit=1e3", "offset=-1", "offset=" + "9" * 400, "offset=%00",
     "order=charm", "order=id);DROP", "group=x", "filter=charm>1", "filter=%00", "filter=%ED%A0%80", "filter=" + "(" * 3000],
)  # fmt: skip
def test_a_bad_question_is_told(ask, view, query):
    ((status, _, told),) = ask(("GET", f"{home(view)}/rows?{query}"))
    assert status == 400
    assert told["error"].endswith((".", "?"))


def test_a_store_whose_pictures_lie_elsewhere_is_not_read(ask, view, tmp_path):
    own = view.ids[0]
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    with Store(view.store) as store:
        store.set_meta("root", str(tmp_path))
    for thumb in (view.store.parent / "thumbs").rglob("*.*"):
        thumb.unlink()
    (outside, _, told), (thumb, _, _), (groups, _, _) = ask(
        ("GET", f"{place(view)}/pictures/{own}"),
        ("GET", f"{place(view)}/thumbs/{own}"),
        ("GET", f"{home(view)}/groups"),
    )
    assert (outside, thumb, groups) == (404, 404, 404)
    assert "may not be read" in told["error"]


def test_undo_leaves_what_a_node_wrote(ask, view):
    with Store(view.store) as store:
        store.edit({view.ids[0]: {"boxes": []}}, "Find Faces", undoable=False)
    (status, _, told), *_ = ask(("POST", f"{place(view)}/undo", {}))
    assert (status, told["undone"]) == (200, None)
    with Store(view.store) as store:
        assert store.rows([view.ids[0]])[0].boxes == ()


def test_a_damaged_store_and_view_are_told(ask, view, folders):
    broken = folders / "output" / "flux_atelier" / "datasets" / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "atelier.db").write_bytes(b"no database" * 1000)
    key = keep_view(view)
    (view.store.parent / "views" / f"{key}.json.gz").write_bytes(b"no gzip")
    store, kept = ask(("GET", f"{HOME}/broken/views/{key}"), ("GET", f"{place(view)}/views/{key}/rows"))
    assert (store[0], kept[0]) == (400, 400)
    assert "no dataset store" in store[2]["error"]
    assert "is damaged" in kept[2]["error"]


# --- the node in a real server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with Server(comfyui, ROOT, tmp_path_factory.mktemp("gallery") / "base") as running:
        draw_pictures(running.base / "input" / "mia")
        yield running


def prompt(require: bool) -> dict:
    """Load, review, and two nodes after it, one behind the other."""
    return {
        "1": {"class_type": "FluxAtelierLoadDataset", "inputs": {"folder": "mia", "validation": 0}},
        "2": {"class_type": "FluxAtelierReviewDataset", "inputs": {"dataset": ["1", 0], "require_review": require}},
        "3": {"class_type": "FluxAtelierFilterDataset", "inputs": {"dataset": ["2", 0], "expression": "", "order": "", "most": 0}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }  # fmt: skip


def in_client(server, action):
    async def go():
        async with Client(server) as client:
            return await action(client)

    return asyncio.run(go())


async def queued(client, graph):
    """Run a prompt to its success: its outputs, the nodes that ran, and what was told as blocked."""
    status, answer = await client.queue(graph)
    assert status == 200, answer
    ran, blocked = [], []
    async with asyncio.timeout(120):
        async for message in client.socket:
            if not isinstance(message.data, str):
                continue
            event = json.loads(message.data)
            data = event.get("data") or {}
            if event["type"] == "executing" and data.get("node"):
                ran.append(data["node"])
            if event["type"] == "execution_error":
                assert data["exception_type"] == "ExecutionBlocked", data
                blocked.append((data["node_id"], data["exception_message"]))
            if event["type"] == "execution_success":
                break
    history = await client.outputs(answer["prompt_id"])
    assert history["status"]["status_str"] == "success"
    return history["outputs"], ran, blocked


def test_what_follows_waits_for_decisions_and_the_queue_does_not(server):
    async def review(client):
        seen = [await queued(client, prompt(True)), await queued(client, prompt(True))]
        store, key = seen[0][0]["2"]["atelier_view"][0].split("/")
        home = f"{HOME}/{store}/views/{key}"
        rows = (await client.get(f"{home}/rows"))["rows"]
        assert (await client.post(f"{home}/decide", {"ids": [rows[0]["id"]], "decision": "reject"}))[0] == 200
        seen.append(await queued(client, prompt(True)))
        assert (await client.post(f"{home}/decide", {"filter": "undecided", "decision": "keep"}))[0] == 200
        seen += [await queued(client, prompt(True)), await queued(client, prompt(True))]
        await client.post(f"{HOME}/{store}/undo", {})
        seen += [await queued(client, prompt(False)), await queued(client, prompt(False))]
        return seen, await client.get(home)

    (first, second, third, passed, cached, free, again), told = in_client(server, review)
    message = "Execution Blocked: 5 of 5 pictures wait for a decision."
    for outputs, _, blocked in (first, second):
        assert [node for node, _ in blocked] == ["3"]
        assert blocked[0][1].startswith(message)
        assert "4" not in outputs
        assert outputs["5"]["text"]  # what does not depend on it has run
        assert outputs["2"]["text"][0].startswith("5 of 5 pictures wait")
    assert third[2][0][1].startswith("Execution Blocked: 4 of 5 pictures wait")
    assert passed[2] == []
    assert passed[0]["4"]["text"] == ["5 of 5 pictures selected"]
    assert passed[0]["2"]["text"][0].startswith("4 of 5 pictures kept, 1 rejected")
    assert cached[1] == []  # nothing is done twice
    assert cached[0]["2"]["atelier_view"] == passed[0]["2"]["atelier_view"]
    assert free[2] == []
    assert free[0]["2"]["text"][0].endswith("4 undecided")
    assert again[1] == []
    assert told["counts"]["reject"] == 1


def test_a_workflow_without_a_browser_gives_the_same_rows(server):
    async def twice(client):
        outputs, *_ = await queued(client, prompt(False))
        view = outputs["2"]["atelier_view"][0].replace("/", "/views/")
        return [await client.get(f"{HOME}/{view}/rows?limit=3&order=-path") for _ in range(2)]

    first, second = in_client(server, twice)
    assert first == second
    assert [row["path"] for row in first["rows"]] == ["4.png", "3.png", "2.png"]


def test_a_page_of_another_origin_is_sent_away(server):
    async def foreign(client):
        headers = {"Origin": "http://example.org", "Sec-Fetch-Site": "cross-site"}
        async with client.session.get(f"{client.base}{HOME}/x/views/{'0' * 16}", headers=headers) as answer:
            return answer.status

    assert in_client(server, foreign) == 403
