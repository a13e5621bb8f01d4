"""What the training panel in the browser asks of ComfyUI's server: a run's curve, its pictures, and three wishes.

The websocket tells only what happens while somebody looks, and only some of the steps. What matters is in the run's
folder, so a panel that opens later, or anew, reads from here and misses nothing. A wish (stop, save, sample) is left
with the run that trains; its loop takes it between two steps.
"""

import asyncio
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

from ..core.errors import AtelierError
from ..trainer.run import Run
from . import host

WISHES = ("stop", "save", "sample")
MOST_RECORDS = 1500  # a curve is some hundred pixels wide
MOST_NOTES = 20


class Wishes:
    """What a person asked of a training since it last looked: asked in the server's thread, taken in the worker's."""

    def __init__(self):
        self._asked: list[str] = []
        self._lock = Lock()

    def ask(self, wish: str) -> None:
        """Leave a wish; asking twice is asking once."""
        with self._lock:
            if wish not in self._asked:
                self._asked.append(wish)

    def take(self) -> list[str]:
        """The wishes since the last call, in the order they came."""
        with self._lock:
            asked, self._asked = self._asked, []
        return asked


_running: dict[str, Wishes] = {}  # by name; ComfyUI has one worker, so a name is here at most once


@contextmanager
def live(name: str) -> Iterator[Wishes]:
    """Mark a run as running for as long as the context lasts; wishes reach it through what is yielded."""
    wishes = _running[name] = Wishes()
    try:
        yield wishes
    finally:
        del _running[name]


# --- what a run's folder tells -------------------------------------------------------------------------------------------


def describe(name: str) -> dict:
    """Everything the panel shows of a run; an empty record for a name that has no run yet.

    Raises AtelierError if the name leads out of the runs' folder.
    """
    run = Run(host.run_folder(name), name)
    return {
        "name": name,
        "running": name in _running,
        "total": planned_steps(run.config_file),
        "records": records(run.metrics_file),
        "notes": [n for n in map(parse_line, lines_of(run.notes_file)) if n][-MOST_NOTES:],
        "samples": pictures(run.samples),
        "plan": text_of(run.plan_file).strip(),
    }


def records(path: Path) -> list[dict]:
    """The metrics of a run, at most MOST_RECORDS: all validations, the last step, and the others evenly thinned."""
    return [r for r in map(parse_line, thinned(lines_of(path), MOST_RECORDS)) if r]


def thinned(lines: list[str], most: int) -> list[str]:
    """Lines are thinned before they are parsed: a long run has a million of them."""
    if len(lines) <= most:
        return lines
    kept = {i for i, line in enumerate(lines) if '"validation": ' in line and '"validation": null' not in line}
    kept.add(len(lines) - 1)
    others = [i for i in range(len(lines)) if i not in kept]
    room = max(0, most - len(kept))
    kept.update(others[k * len(others) // room] for k in range(room))
    return [lines[i] for i in sorted(kept)]


def parse_line(line: str) -> dict | None:
    """One JSON line; None where it was cut short. NaN and infinity become null, which browsers can read."""
    try:
        data = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


def planned_steps(path: Path) -> int:
    """The steps that a run's config.toml asks for; 0 where there is none that can be read."""
    try:
        return int(tomllib.loads(text_of(path)).get("steps", 0))
    except tomllib.TOMLDecodeError:
        return 0


def pictures(folder: Path) -> list[dict]:
    """The sample pictures by step; the time tells a picture that was drawn again from the one it replaces."""
    found = []
    for path in folder.glob("step-*.png") if folder.is_dir() else ():
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            found.append({"step": int(number), "file": path.name, "time": path.stat().st_mtime})
    return sorted(found, key=lambda s: s["step"])


def picture_file(name: str, file: str) -> Path:
    """A sample picture by its plain name; raises AtelierError for anything else."""
    folder = Run(host.run_folder(name), name).samples
    if Path(file).name != file or not file.endswith(".png"):
        raise AtelierError(f"The picture is called {file!r}. Use a plain file name ending in .png.")
    path = host.inside(folder, file)
    if not path.is_file():
        raise AtelierError(f"The run {name!r} has no picture {file!r}. Look at the samples that the run lists.")
    return path


def lines_of(path: Path) -> list[str]:
    return text_of(path).splitlines()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


# --- the routes ----------------------------------------------------------------------------------------------------------


async def get_run(request):
    from aiohttp import web

    try:
        return web.json_response(await asyncio.to_thread(describe, request.match_info["name"].strip()))
    except AtelierError as error:
        return web.json_response({"error": str(error)}, status=400)


async def get_picture(request):
    from aiohttp import web

    try:
        path = await asyncio.to_thread(picture_file, request.match_info["name"].strip(), request.match_info["file"])
    except AtelierError as error:
        return web.json_response({"error": str(error)}, status=400)
    # A run of the same name may draw the same step again.
    return web.FileResponse(path, headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})


async def post_wish(request):
    from aiohttp import web

    name, wish = request.match_info["name"].strip(), request.match_info["wish"]
    wishes = _running.get(name)
    if wishes is None:
        sentence = f"The run {name!r} is not training. Queue its Train LoRA node first."
        return web.json_response({"error": sentence}, status=409)
    wishes.ask(wish)
    return web.json_response({"asked": wish})


@cache
def register() -> None:
    """Add the routes to ComfyUI's server, once; where there is no server, nothing."""
    server = host.prompt_server()
    if server is None:
        return
    run = "/flux_atelier/runs/{name}"
    server.routes.get(run)(get_run)
    server.routes.get(run + "/samples/{file}")(get_picture)
    server.routes.post(f"{run}/{{wish:{'|'.join(WISHES)}}}")(post_wish)
