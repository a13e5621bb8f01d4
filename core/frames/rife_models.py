"""RIFE v4 models for ncnn: what a folder holds, where folders lie, and how a named one is fetched when a person asks.

A model is known by its graph, not by its folder's name, which is all that the engine goes by.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from ..errors import AtelierError
from ..files import FULL, told_if_full
from .ncnn_model import Graph, check_weights, read_param, shapes

FILES = ("flownet.param", "flownet.bin")
INPUTS = {"in0": 3, "in1": 3, "in2": 1}  # both frames and the time, with their channels
DEEPEST = 3  # folders below a root: a release's archive has its models one or two down
LARGEST = 512 << 20  # bytes of one file to fetch; the largest RIFE has 90 MB
TABLE = Path(__file__).with_name("rife_models.json")
DIGESTS = {"sha256": 64, "git": 40}  # hex digits of each


@dataclass(frozen=True)
class Layout:
    """What a model's graph says of it."""

    blocks: int  # refinements of the motion: 4 up to RIFE 4.24, 5 from 4.25
    padding: int  # pixels: both sides of a frame must be multiples
    flows: int  # flow blobs that the engine's test-time augmentation needs; 4 or 0
    pointwise: bool  # 1 x 1 convolutions, on which the engine's Vulkan code dies


@dataclass(frozen=True)
class Download:
    """One file to fetch: an https address, and a digest as sha256:<hex> or git:<hex> (the name git gives its content)."""

    url: str
    digest: str


def check_model(folder: Path) -> Layout:
    """Read a model's files before the engine, which dies on bad ones, sees them.

    folder  with flownet.param and flownet.bin
    Raises AtelierError that names the problem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AtelierError(f"There is no folder {folder}. Choose a folder with a RIFE v4 model for ncnn.")
    param, weights = (folder / name for name in FILES)
    graph = read_param(param)
    layout = layout_of(graph, param)
    check_weights(graph, weights)
    return layout


def layout_of(graph: Graph, path: Path) -> Layout:
    """Tell from a graph's blobs and layers which kind of RIFE v4 it is.

    path  where the graph is from, for the messages
    Raises AtelierError if it is no RIFE v4, or does not fit together.
    """
    inputs = {name for layer in graph if layer.kind == "Input" for name in layer.outputs}
    outputs = {name for layer in graph for name in layer.outputs}
    if inputs != set(INPUTS) or "out0" not in outputs:
        raise AtelierError(f"{path.parent} is no RIFE v4 model. Choose one of version 4 or later.")
    blobs = shapes(graph, INPUTS, path)
    out = blobs["out0"]
    if out.channels != 3 or out.scale != 1:
        raise AtelierError(
            f"{path} makes a picture of {out.channels} channels at {out.scale} of the frame's size. "
            "It is no RIFE v4 model: choose another."
        )
    coarsest = min(blob.scale for blob in blobs.values() if blob.scale is not None)
    warps = sum(layer.kind == "rife.Warp" and blobs[layer.inputs[0]].channels == 3 for layer in graph)
    return Layout(
        blocks=warps // 2,
        padding=max(32, coarsest.denominator),
        flows=sum(f"flow{i}" in outputs for i in range(4)),
        pointwise=any(layer.kind == "Convolution" and layer.number(1) == 1 for layer in graph),
    )


def list_models(roots: Iterable[Path]) -> dict[str, Path]:
    """Find the folders with a flownet.param below some roots, such as ComfyUI's models/frame_interpolation.

    -> folders by their names below the root, in order; the first root wins
    """
    found: dict[str, Path] = {}
    for root in roots:
        for depth in range(1, DEEPEST + 1):
            for param in sorted(root.glob("*/" * depth + FILES[0])):
                name = param.parent.relative_to(root).as_posix()
                if not name.startswith("."):  # what a fetch that was killed left
                    found.setdefault(name, param.parent)
    return dict(sorted(found.items()))


def find_model(name: str, roots: Iterable[Path]) -> Path:
    """The folder of a model by its name, or by the last part of it.

    Raises AtelierError that lists what is there.
    """
    roots = list(roots)
    models, name = list_models(roots), name.strip().strip("/")
    matches = [path for key, path in models.items() if name in (key, key.rsplit("/", 1)[-1])]
    if matches:
        return models.get(name, matches[0])
    places = " and ".join(str(root) for root in roots)
    have = f"They hold {', '.join(models)}" if models else "Put a folder with flownet.param and flownet.bin there"
    raise AtelierError(f"There is no RIFE model {name!r} in {places}. {have}.")


def known_models() -> dict[str, dict[str, Download]]:
    """The official models that can be fetched by name, each file pinned to one commit and its git digest."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: {file: Download(f"{table['address']}{name}/{file}", digest) for file, digest in files.items()}
        for name, files in table["models"].items()
    }


Opener = Callable[[str], AbstractContextManager[IO[bytes]]]


class _OnlySecure(HTTPRedirectHandler):
    """Follow a redirection to https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_address(url: str) -> Any:
    """Open an https address to read."""
    return build_opener(_OnlySecure).open(url, timeout=60)


def fetch_model(
    name: str,
    folder: Path,
    files: Mapping[str, Download] | None = None,
    open_url: Opener = open_address,
    report: Callable[[int], object] = lambda _: None,
) -> Path:
    """Fetch a model into a folder of its name. Nothing else in the pack opens an address, and this only when called.

    name      of the folder; of known_models if no files are given
    folder    where the model's folder will stand
    files     a Download for flownet.param and one for flownet.bin
    report    told the bytes received so far; what it raises ends the fetch
    ->        the model's folder, whole and checked
    Raises AtelierError if the address, digest, size or model is not right; then nothing stays behind.
    """
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise AtelierError(f"The name {name!r} is not a plain folder name. Use letters, digits, dots and dashes.")
    target = Path(folder) / name
    if target.exists():
        raise AtelierError(f"{target} is there already. Use it, or remove it to fetch it again.")
    wanted = files if files is not None else known_models().get(name)
    if wanted is None:
        raise AtelierError(
            f"There is no known model {name!r}. Give addresses and sha256 digests, or choose {', '.join(known_models())}."
        )
    for file in FILES:
        if file not in wanted:
            raise AtelierError(f"There is no address for {file} of {name}. Give one, with its sha256.")
        _check_address(wanted[file].url)
        _check_digest(wanted[file])
    with told_if_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
        try:
            received = 0
            for file in FILES:
                received = _receive(wanted[file], work / file, open_url, lambda n, before=received: report(before + n))
            check_model(work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
        raise AtelierError(f"The address {url!r} is not a plain https address. Give one that begins with https://.")


def _check_digest(file: Download) -> None:
    kind, _, digits = file.digest.partition(":")
    if not re.fullmatch(r"[0-9a-f]+", digits) or DIGESTS.get(kind) != len(digits):
        raise AtelierError(f"The digest of {file.url} is {file.digest!r}. Give sha256: and 64 hex digits.")


def _receive(file: Download, path: Path, open_url: Opener, report: Callable[[int], object]) -> int:
    """Stream one file to the disk and compare its digest; the bytes received."""
    received = 0
    try:
        with open_url(file.url) as source, open(path, "wb") as out:
            while part := source.read(1 << 18):
                received += len(part)
                if received > LARGEST:
                    raise AtelierError(f"{file.url} is larger than {LARGEST >> 20} MiB. Check the address.")
                out.write(part)
                report(received)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise AtelierError(
            f"{file.url} could not be fetched ({error}). Check the connection and the address."
        ) from None
    if (found := digest_of_file(path, file.digest.partition(":")[0])) != file.digest:
        raise AtelierError(f"{file.url} has the digest {found}, not {file.digest}. It is not the file that was meant.")
    return received


def digest_of_file(path: Path, kind: str) -> str:
    """A file's digest as sha256:<hex> or git:<hex>."""
    start = f"blob {path.stat().st_size}\0".encode() if kind == "git" else b""
    with open(path, "rb") as opened:
        made = hashlib.sha1(start, usedforsecurity=False) if kind == "git" else hashlib.sha256(start)
        while part := opened.read(1 << 20):
            made.update(part)
    return f"{kind}:{made.hexdigest()}"
