"""The dataset room: 10,000 small pictures opened cold and warm, filtered, decided on; and the one-decode scan.

The peer is the pack's load_folder, which reads the same folder into a record without a store; where it has no such
step, the peer is what the step took in the study that the targets come from, in the same unit.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .__main__ import Figure

COUNT, SCANNED, LARGE = 10_000, 400, 12


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as held:
        root = Path(held)
        _pictures(root / "small", COUNT, (48, 32), "png")
        _pictures(root / "medium", SCANNED, (512, 512), "jpg")
        _pictures(root / "large", LARGE, (3000, 2000), "jpg")
        return [*_opening(root), *_scanning(root)]


def _pictures(folder: Path, count: int, size: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        part = folder / f"{i // 500:03d}"
        part.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(part / f"{i:05d}.{kind}")
        if kind == "png":
            (part / f"{i:05d}.txt").write_text(f"picture {i}")


def _timed(call):
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - began, time.process_time() - cpu


def _grown() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _opening(root: Path) -> list[Figure]:
    from flux_atelier.core.dataset.folder import load_folder
    from flux_atelier.core.dataset.scan import finish, scan
    from flux_atelier.core.dataset.sources import open_source
    from flux_atelier.core.dataset.store import Store
    from flux_atelier.core.dataset.view import View

    before = _grown()
    with Store(root / "set" / "atelier.db") as store:

        def opened():
            finish(scan(store, open_source(root / "small", root / "cache"), measured=False))
            return View.of(store)

        view, cold, _ = _timed(opened)
        _, warm, _ = _timed(opened)
        memory = _grown() - before
        _, narrowed, _ = _timed(lambda: view.filter("shorter >= 32 and captions == 1 and not tag:watermark"))
        _, page, _ = _timed(lambda: view.rows(5000, 5200))
        _, decided, _ = _timed(lambda: [store.decide([own], "keep", "human") for own in view.ids[:50]])
    _, theirs, _ = _timed(lambda: load_folder(root / "small"))
    return [
        Figure("open 10,000 files cold", cold, theirs, "s", most=3.0),
        Figure("open 10,000 files warm", warm, theirs, "s", most=0.5),
        Figure("memory of opening", memory, None, "MiB", most=60),
        Figure("filter 10,000 rows", narrowed * 1000, None, "ms", most=100),
        Figure("page of 200 rows", page * 1000, None, "ms", most=100),
        Figure("one decision", decided / 50 * 1000, None, "ms", most=10),
    ]


def _scanning(root: Path) -> list[Figure]:
    from flux_atelier.core.dataset.scan import finish, scan
    from flux_atelier.core.dataset.sources import list_folder
    from flux_atelier.core.dataset.store import Store

    figures = []
    for name, count, least in (("medium", SCANNED, 100), ("large", LARGE, 30)):
        with Store(root / name / ".store" / "atelier.db") as store:
            _, _, cpu = _timed(lambda s=store, n=name: finish(scan(s, list_folder(root / n))))
        figures.append(
            Figure(f"CPU time of a scanned {name} picture", cpu / count * 1000, None, "ms", most=1000 / least)
        )
    return figures
