"""RIFE models for the frames room, fetched when a person asks for one and never otherwise."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from comfy_api.latest import io, ui

from ..core.frames.rife_models import (
    FILES,
    Download,
    check_model,
    fetch_model,
    known_models,
    list_models,
    open_address,
)
from . import host
from .frames import CATEGORY, LOOK

OWN = "own addresses"
PARTS = ("param", "bin")  # of the names of the inputs, for the two files


class FetchRifeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierFetchRifeModel",
            display_name="Fetch RIFE Model",
            category=CATEGORY,
            description="Fetch a RIFE model into models/frame_interpolation when it is not there yet. "
            "Nothing else in this pack fetches anything.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*known_models(), OWN],
                    default="rife-v4.26",
                    tooltip="The model, checked by its digest; own addresses: what the inputs below say.",
                ),
                io.String.Input("name", default="", optional=True, advanced=True, tooltip="Own addresses: the folder's name."),
                *own_inputs(),
            ],
            outputs=[io.String.Output(display_name="rife_model")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model, name="", **own):
        """A model that was removed is fetched again."""
        return model, name, *own.values(), str(place_of(name.strip() if model == OWN else model))

    @classmethod
    def execute(cls, model: str, name: str = "", **own: str) -> io.NodeOutput:
        name = name.strip() if model == OWN else model
        there = place_of(name)
        if there is not None:
            check_model(there)
            return io.NodeOutput(name, ui=ui.PreviewText(f"{name} is there already\n{there}"))
        files = own_files(own) if model == OWN else known_models()[model]
        fetch = Fetch(name, host.model_folders("frame_interpolation")[0], files)
        folder = fetch.result(host.Progress(1, cls.hidden.unique_id))
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        return io.NodeOutput(name, ui=ui.PreviewText(f"{name}: {size:.1f} MB fetched, digests and layout as they should be\n{folder}"))  # fmt: skip


def own_inputs() -> list:
    """An address and a digest for each file."""
    found = []
    for part, file in zip(PARTS, FILES, strict=True):
        for what, words in (("url", "https address"), ("digest", "sha256: and 64 hex digits")):
            tooltip = f"Own addresses: {words} of {file}."
            found.append(io.String.Input(f"{part}_{what}", default="", optional=True, advanced=True, tooltip=tooltip))
    return found


def own_files(own: Mapping[str, str]) -> dict[str, Download]:
    return {
        file: Download(own.get(f"{part}_url", "").strip(), own.get(f"{part}_digest", "").strip().lower())
        for part, file in zip(PARTS, FILES, strict=True)
    }


def place_of(name: str) -> Path | None:
    """The folder in which Interpolate Frames finds a model of that name."""
    found = list_models([*host.model_folders("frame_interpolation"), *host.model_folders("rife")])
    return next((path for key, path in found.items() if name in (key, key.rsplit("/", 1)[-1])), None)


class Cancelled(Exception):
    """Ends the thread that fetches."""


class Fetch:
    """A fetch in a thread of its own: a line that is stuck may say nothing for a minute, and a cancel does not wait."""

    def __init__(self, name: str, folder: Path, files: Mapping[str, Download]):
        self.task = name, folder, files
        self.received = self.size = 0  # bytes: received, and to be received as far as servers have told
        self.stopped = False

    def result(self, progress: host.Progress) -> Path:
        """The model's folder; raises what ends the fetch, and ComfyUI's interrupt if the person cancelled."""
        pool = ThreadPoolExecutor(1)
        fetch = pool.submit(fetch_model, *self.task, self._open, self._report)
        try:
            while not wait([fetch], LOOK).done:
                progress.total = max(1, self.size, self.received)
                progress.at(self.received)
            return fetch.result()
        finally:
            self.stopped = True
            wait([fetch], LOOK)
            pool.shutdown(wait=False)

    def _open(self, url: str):
        source = open_address(url)
        headers = getattr(source, "headers", None) or {}
        self.size += int(headers.get("Content-Length") or 0)
        return source

    def _report(self, received: int) -> None:
        self.received = received
        if self.stopped:
            raise Cancelled


NODES = [FetchRifeModel]
