"""What the gallery in the browser asks of ComfyUI's server: pages of a view, its pictures, and a person's decisions.

Everything is answered from a store by way of a kept view; rows are named by their ids, never by paths. A decision is
answered after its commit. Work is done in threads: decisions do not wait behind pages, nor pages behind pictures.
"""

import asyncio
import json
import math
import mimetypes
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.dataset.changes import WRITES, change, undo
from ..core.dataset.kept_view import Absent
from ..core.dataset.paging import Asked, OpenStore, Pending, Stores, seen, words_of
from ..core.dataset.replay import replay
from ..core.dataset.scan import open_any
from ..core.dataset.stored import StoredRow
from ..core.dataset.view import LeftOut
from ..core.errors import AtelierError
from ..core.files import digest_of
from ..core.options import parse
from . import host

HOME = "/flux_atelier/datasets"
LARGEST_BODY = 8 * 2**20  # bytes; 60,000 ids are a seventh of it
LONGEST_ERROR = 400  # letters
SIDES = (16, 4096)  # pixels of a picture's longer side
MOST_ALIKE, MOST_GROUPS = 100, 100
TOLD = (AtelierError, sqlite3.Error, OSError)
LASTING = "private, max-age=31536000, immutable"  # an id stands for a picture's bytes


def store_folder(name: str) -> Path:
    """A store's folder by its plain name; raises AtelierError for a name that leads elsewhere."""
    root = host.datasets_folder()
    if "\0" in name or "\\" in name or host.inside(root, name).parent != root:
        raise AtelierError(f"The dataset is called {name[:40]!r}. Use the plain name of its folder.")
    return root / name


def may_read(root: Path) -> bool:
    """Whether pictures below a folder may be shown: those that Load Dataset would open."""
    real = root.resolve()
    return any(real.is_relative_to(known) for known in host.picture_roots())


stores = Stores(readable=may_read)
_pages = ThreadPoolExecutor(2, "flux_atelier pages")
_pictures = ThreadPoolExecutor(2, "flux_atelier pictures")


# --- answers -------------------------------------------------------------------------------------------------------------


def describe(store: OpenStore, key: str) -> dict:
    """What the gallery shows above the pictures."""
    view, scores = store.view(key), store.store.score_names()
    counts, splits = store.counts(key)
    revision = store.store.revision
    return {
        "store": store.folder.name,
        "key": key,
        "root": store.store.meta("root"),
        "total": len(store.ids(key, Asked())),
        "counts": counts,
        "revision": revision,
        "scores": scores,
        "names": words_of(scores),
        "splits": splits,
        "current": revision == view.revision,
    }


def told(row: StoredRow, left: LeftOut | None = None) -> dict:
    """A row as the browser reads it."""
    plain = ("id", "path", "width", "height", "decision", "stars", "split", "repeats", "reason", "digest", "parent")
    return {name: getattr(row, name) for name in plain} | {
        "by": row.decided_by,
        "tags": list(row.tags),
        "captions": [{"text": c.text, "author": c.author, "model": c.model} for c in row.captions],
        "crop": row.crop and list(row.crop),
        "boxes": None if row.boxes is None else [dict(box) for box in row.boxes],
        "notes": list(row.notes),
        "scores": dict(row.scores),
        "left_out": left and {"reason": left.reason, "by": left.by},
    }


def list_rows(store: OpenStore, key: str, query) -> dict:
    """A page of rows."""
    names = ("filter", "order", "group")
    asked = Asked(number(query, "offset", 0), number(query, "limit", 200), **{n: query[n] for n in names if n in query})
    page = store.page(key, asked)
    if isinstance(page, Pending):
        return waiting(page)
    rows = [told(row, page.left_out.get(row.id)) for row in page.rows]
    return {"total": page.total, "revision": page.revision, "rows": rows}


def list_alike(store: OpenStore, key: str, id: str, query) -> dict:
    """The rows most like one, with the bits in which they differ."""
    count = min(max(1, number(query, "n", 12)), MOST_ALIKE)
    return {"rows": [told(row) | {"distance": apart} for row, apart in store.alike(key, id, count)]}


def list_groups(store: OpenStore, key: str, query) -> dict:
    """Duplicate groups with their rows, the best copy first, and why they are together."""
    groups = store.groups(key)
    if isinstance(groups, Pending):
        return waiting(groups)
    offset, limit = max(0, number(query, "offset", 0)), min(max(1, number(query, "limit", 20)), MOST_GROUPS)
    shown = []
    for group in groups[offset : offset + limit]:
        rows = store.rows(key, (group.kept, *group.left_out))
        shown.append(
            {"kept": group.kept, "rows": [told(row) for row in rows], "why": [list(link) for link in group.why]}
        )
    return {"total": len(groups), "groups": shown}


def waiting(pending: Pending) -> dict:
    return {"pending": True, "done": pending.done, "total": pending.total}


def number(query, name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or len(text) > 12:
        raise AtelierError(f"{name} is {text[:40]!r}. Give a whole number from 0 on.")
    return int(text)


def draw(store: OpenStore, id: str, query) -> tuple[bytes, str] | str:
    """A row's picture as WebP with its mark; the mark alone where the browser has that one already."""
    side = min(max(number(query, "side", 1600), SIDES[0]), SIDES[1])
    stored = store.row(id)
    view = store.view(query["view"]) if "view" in query else None
    row, ops = stored, stored.ops or ()
    if view is not None:
        row = seen(view, stored, id)
        ops = view.ops_of(row)
    done = query.get("done") == "1"
    mark = f'"{digest_of(row.digest, side, *((row.crop, ops) if done else ()), size=8)}"'
    if query.get("mark") == mark:
        return mark
    changed = done and (row.crop is not None or ops)
    picture = open_any(store.source(row).read_bytes(), 0 if changed else side).image
    if changed:
        picture = replay(picture, row.crop, ops)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2)
    held = BytesIO()
    picture.save(held, "WEBP", quality=85, method=1)
    return held.getvalue(), mark


# --- the routes ----------------------------------------------------------------------------------------------------------


def answer(data: dict, status: int = 200):
    """JSON that browsers can read: a score that is no number becomes null."""
    from aiohttp import web

    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(data))
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refused(error: Exception):
    """The answer to what went wrong in a way that is told."""
    status = 404 if isinstance(error, Absent) else 400
    sentence = str(error)
    if isinstance(error, sqlite3.Error | OSError):
        why = getattr(error, "strerror", None) or error
        status, sentence = 409, f"The dataset cannot be used at the moment ({why}). Try again."
    return answer({"error": sentence[:LONGEST_ERROR]}, status)


def in_store(name: str, work: Callable, *given: object):
    """Do something with the open store of a name; for a thread."""
    with stores.use(store_folder(name)) as store:
        return work(store, *given)


async def working(request, pool: ThreadPoolExecutor | None, work: Callable, *given: object):
    """Run some work in a thread; None is asyncio's own threads, which only short work may use."""
    call = partial(in_store, request.match_info["store"], work, *given)
    return await asyncio.get_running_loop().run_in_executor(pool, call)


def reading(work: Callable, *parts: str):
    """A handler that answers a question about a view."""

    async def handler(request):
        given = (request.match_info[part] for part in parts)
        try:
            return answer(await working(request, _pages, work, *given, request.query))
        except TOLD as error:
            return refused(error)

    return handler


async def read_body(request) -> dict:
    """A request's JSON object; raises AtelierError for another type, which a foreign page could send, and for a long one."""
    if request.content_type != "application/json":
        raise AtelierError(f"The request is {request.content_type[:60]}. Send application/json.")
    data = bytearray()
    async for piece in request.content.iter_any():
        data += piece
        if len(data) > LARGEST_BODY:
            raise AtelierError(f"The request is larger than {LARGEST_BODY // 2**20} MB. Choose the rows by a filter.")
    return await asyncio.to_thread(parsed, bytes(data))


def parsed(data: bytes) -> dict:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        raise AtelierError("The request is no JSON. Send an object.") from None
    if not isinstance(said, dict):
        raise AtelierError("The request is no JSON object. Send one with names and values.")
    return said


async def post_change(request):
    kind = WRITES[request.match_info["change"]]
    try:
        wanted = await asyncio.to_thread(parse, kind, await read_body(request), "The request")
        return answer(await working(request, None, change, request.match_info["key"], wanted))
    except TOLD as error:
        return refused(error)


async def post_undo(request):
    try:
        await read_body(request)
        return answer(await working(request, None, undo))
    except TOLD as error:
        return refused(error)


async def get_thumb(request):
    from aiohttp import web

    try:
        row = await working(request, _pages, OpenStore.row, request.match_info["id"])
        headers = {"ETag": f'"{row.digest}"', "Cache-Control": LASTING, "X-Content-Type-Options": "nosniff"}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        path = await working(request, _pictures, OpenStore.thumb, row)
        body = await asyncio.to_thread(path.read_bytes)
    except TOLD as error:
        return refused(error)
    return web.Response(body=body, content_type=mimetypes.guess_type(path.name)[0] or "image/webp", headers=headers)


async def get_picture(request):
    from aiohttp import web

    query = dict(request.query) | {"mark": request.headers.get("If-None-Match", "")}
    try:
        drawn = await working(request, _pictures, draw, request.match_info["id"], query)
    except TOLD as error:
        return refused(error)
    headers = {"ETag": drawn if isinstance(drawn, str) else drawn[1], "Cache-Control": "private, no-cache"}
    headers["X-Content-Type-Options"] = "nosniff"
    if isinstance(drawn, str):
        return web.Response(status=304, headers=headers)
    return web.Response(body=drawn[0], content_type="image/webp", headers=headers)


@cache
def register() -> None:
    """Add the routes to ComfyUI's server, once; where there is no server, nothing."""
    server = host.prompt_server()
    if server is None:
        return
    store = HOME + "/{store}"
    view = store + "/views/{key}"
    routes = server.routes
    routes.get(view)(reading(lambda opened, key, _: describe(opened, key), "key"))
    routes.get(view + "/rows")(reading(list_rows, "key"))
    routes.get(view + "/similar/{id}")(reading(list_alike, "key", "id"))
    routes.get(view + "/groups")(reading(list_groups, "key"))
    routes.get(store + "/thumbs/{id}")(get_thumb)
    routes.get(store + "/pictures/{id}")(get_picture)
    routes.post(view + "/{change:" + "|".join(WRITES) + "}")(post_change)
    routes.post(store + "/undo")(post_undo)
