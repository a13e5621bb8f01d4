"""The gallery over 50,000 rows: pages, decisions, undo, pictures alike, groups; in the server, and on the screen.

The first part asks the open store itself. The second runs a real ComfyUI and a headless Chromium over 50,000 files, where
what counts is when somebody sees it; it is left out where there is no ComfyUI or no Chromium. The peer of each figure is
what is asked of it: no other node pages a dataset in the browser without blocking the queue.

    ATELIER_SCREENSHOTS=/tmp python -m benchmarks gallery      # with pictures of the screen, gallery50k_*.png
"""

import random
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from .__main__ import Figure
from .gallery_screen import on_screen

COUNT, BULK, GROUPED, SHADE = 50_000, 10_000, 3000, 24


def run() -> list[Figure]:
    from flux_atelier.core.dataset.kept_view import keep_view
    from flux_atelier.core.dataset.paging import Stores
    from flux_atelier.core.dataset.store import Store
    from flux_atelier.core.dataset.view import View

    with tempfile.TemporaryDirectory() as held:
        folder = Path(held) / "big"
        _rows(folder, COUNT)
        with Store(folder / "atelier.db") as store:
            view = View.of(store)
        stores = Stores()
        kept, keeping = _timed(lambda: keep_view(view))
        with stores.use(folder) as opened:
            figures = [*_reading(opened, kept), *_writing(opened, kept, view.ids)]
        small = Path(held) / "small"
        _rows(small, GROUPED)
        figures += _grouping(stores, small)
        stores.close()
    return [Figure("keep a view of 50,000 rows", keeping, None, "ms", most=500), *figures, *on_screen(COUNT)]


def _rows(folder: Path, count: int) -> None:
    """Rows with five scores, a hash and a caption each; the first ones of a small store have thumbnails."""
    from flux_atelier.core.dataset.opening import thumb_of
    from flux_atelier.core.dataset.scan import write_thumb
    from flux_atelier.core.dataset.store import Store
    from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption

    rng = random.Random(0)
    names = ("sharpness", "noise", "entropy", "letterbox", "resolution")
    with Store(folder / "atelier.db") as store:
        store.set_meta("root", str(folder / "pictures"))
        for start in range(0, count, 1000):
            rows = [
                StoredRow(
                    f"{i // 500:03d}/{i:05d}.png", f"{rng.getrandbits(128):032x}", "1", width=1024, height=768,
                    format="PNG", measured=1, scores={name: rng.random() for name in names},
                    hashes={"dct": f"{rng.getrandbits(64):016x}"},
                    captions=(WrittenCaption(f"a picture of the sea, number {i}", origin="file"),),
                )
                for i in range(start, start + 1000)
            ]  # fmt: skip
            store.put(rows)
            for i, row in enumerate(rows if count == GROUPED else rows[:1]):
                # Every tenth picture is the one before it.
                shade = Image.frombytes("L", (SHADE, SHADE), random.Random(i - (i % 10 == 9)).randbytes(SHADE * SHADE))
                write_thumb(
                    thumb_of(store.path, row), shade.resize((256, 192), Image.Resampling.BICUBIC).convert("RGB")
                )


def _timed(call):
    began = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - began) * 1000


def _reading(opened, kept: str) -> list[Figure]:
    from flux_atelier.core.dataset.paging import Asked

    sorted_by = Asked(25_000, 200, "sharpness > 0.3 and not tag:watermark", "-noise")
    (_, first), (_, cold) = (_timed(lambda a=a: opened.page(kept, a)) for a in (Asked(), sorted_by))
    pages = [_timed(lambda at=at: opened.page(kept, Asked(at * 1000, 200)))[1] for at in range(40)]
    _, warm = _timed(lambda: opened.page(kept, sorted_by))
    _, described = _timed(lambda: opened.counts(kept))
    own = opened.ids(kept, Asked())[0]
    _, alike_cold = _timed(lambda: opened.alike(kept, own, 12))
    _, alike = _timed(lambda: opened.alike(kept, own, 12))
    return [
        Figure("first page after opening", first, None, "ms", most=1000),
        Figure("page of 200 of 50,000", statistics.median(pages), None, "ms", most=100),
        Figure("first page of a new filter and order", cold, None, "ms", most=1000),
        Figure("page in that filter and order", warm, None, "ms", most=100),
        Figure("first counts", described, None, "ms", most=1000),
        Figure("pictures alike, first", alike_cold, None, "ms", most=1000),
        Figure("pictures alike", alike, None, "ms", most=100),
    ]


def _writing(opened, kept: str, ids: tuple[str, ...]) -> list[Figure]:
    from flux_atelier.core.dataset.changes import Decide, change, undo
    from flux_atelier.core.dataset.paging import Asked

    def decide(chosen):
        return _timed(lambda: change(opened, kept, Decide(ids=list(chosen), decision="keep")))[1]

    single = [decide([own]) for own in ids[:200]]
    after, counted = [], []
    for own in ids[200:210]:
        decide([own])
        after.append(_timed(lambda: opened.page(kept, Asked(30_000, 200, "sharpness > 0.3", "-sharpness")))[1])
        counted.append(_timed(lambda: opened.counts(kept))[1])
    bulk = decide(ids[:BULK])
    _, back = _timed(lambda: undo(opened))
    steps = [_timed(lambda: undo(opened))[1] for _ in range(50)]
    return [
        Figure("one decision, committed", statistics.median(single), None, "ms", most=10),
        Figure("the slowest of 20", statistics.quantiles(single, n=20)[-1], None, "ms"),
        Figure("page after a decision", statistics.median(after[1:]), None, "ms", most=100),
        Figure("counts after a decision", statistics.median(counted), None, "ms", most=100),
        Figure("10,000 decisions at once", bulk, None, "ms", most=1000),
        Figure("taken back", back, None, "ms", most=1000),
        Figure("one step back", statistics.median(steps), None, "ms", most=10),
    ]


def _grouping(stores, folder: Path) -> list[Figure]:
    from flux_atelier.core.dataset.kept_view import keep_view
    from flux_atelier.core.dataset.paging import Pending
    from flux_atelier.core.dataset.store import Store
    from flux_atelier.core.dataset.view import View

    with Store(folder / "atelier.db") as store:
        kept = keep_view(View.of(store))
    with stores.use(folder) as opened:
        began = time.perf_counter()
        _, asked = _timed(lambda: opened.groups(kept))
        while isinstance(groups := opened.groups(kept), Pending):
            time.sleep(0.02)
        whole = time.perf_counter() - began
        _, again = _timed(lambda: opened.groups(kept))
    assert len(groups) >= GROUPED // 10, f"{len(groups)} groups were found"
    return [
        Figure("ask for groups", asked, None, "ms", most=100),
        Figure("groups of 3,000, in the background", whole * 1000, None, "ms", most=GROUPED * 10),
        Figure("groups again", again, None, "ms", most=100),
    ]
