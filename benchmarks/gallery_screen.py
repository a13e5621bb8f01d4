"""The gallery on the screen: 50,000 pictures in a real ComfyUI, looked through and decided on in Chromium."""

import asyncio
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

from .__main__ import ROOT, Figure

COUNT, UNDONE, JUMPS = 50_000, 50, 25
STORE = "output/flux_atelier/datasets"


GRAPH = """(() => {
  const a = window.app; a.graph.clear();
  const load = LiteGraph.createNode("FluxAtelierLoadDataset"), review = LiteGraph.createNode("FluxAtelierReviewDataset");
  load.pos = [0, 0]; review.pos = [400, 0]; review.size = [1000, 780];
  a.graph.add(load); a.graph.add(review); load.connect(0, review, 0);
  load.widgets.find((w) => w.name === "folder").value = "big";
  Object.assign(a.canvas.ds, {scale: 1, offset: [10, 90]}); a.canvas.setDirty(true, true);
})()"""
WATCH = """(() => {
  performance.setResourceTimingBufferSize(100000);
  const bench = window.bench = {keys: []}, frame = (then) => requestAnimationFrame(then);
  const inWindow = () => {
    const box = document.querySelector(".cells").getBoundingClientRect();
    return [...document.querySelectorAll(".cell")].filter((cell) => {
      const own = cell.getBoundingClientRect();
      return own.bottom > box.top && own.top < box.bottom;
    });
  };
  bench.all = (fits) => { const seen = inWindow(); return seen.length > 0 && seen.every(fits); };
  bench.read = (cell) => !cell.classList.contains("unread");
  bench.drawn = (cell) => bench.read(cell) && !cell.querySelector("img").hidden;
  bench.painted = (began, fits) => new Promise((done) => {
    const look = () => fits() ? frame(() => done(performance.now() - began)) : frame(look);
    look();
  });
  bench.jump = (top) => {
    const began = performance.now();
    document.querySelector(".cells").scrollTop = top;
    return bench.painted(began, () => bench.all(bench.read));
  };
  bench.took = (part) => performance.getEntriesByType("resource").filter((e) => e.name.includes(part)).map((e) => e.duration);
  window.addEventListener("keydown", (event) => {
    const cell = document.querySelector(".cell.focus");
    if (event.key === "k" && cell) bench.painted(event.timeStamp, () => cell.dataset.decision === "keep").then((ms) => bench.keys.push(ms));
  }, true);
  window.comfyAPI.api.api.addEventListener("executed", (event) => {
    if (!event.detail.output?.atelier_view) return;
    const began = performance.now();
    bench.painted(began, () => bench.all(bench.read)).then((ms) => bench.rows = ms);
    bench.painted(began, () => bench.all(bench.drawn)).then((ms) => bench.thumbs = ms);
  });
})()"""
PLACE = """JSON.stringify([document.querySelector(".cells").scrollTop, document.querySelector(".cell.focus")?.getAttribute("aria-label"),
  document.querySelector(".filter").value, document.querySelector(".counts").textContent, document.querySelector(".foot .shown").textContent])"""


def on_screen(count: int = COUNT) -> list[Figure]:
    """Figures of a real server and browser, or none where one of them is not there."""
    sys.path.append(str(ROOT / "tests" / "comfyui"))
    from browser import find_chromium
    from comfy_process import Server

    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not find_chromium() or not (comfyui / "main.py").is_file():
        print(f"There is no Chromium, or no ComfyUI at {comfyui}: what is on the screen is not measured.")
        return []
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="gallery_") as held:
        server = Server(comfyui, ROOT, Path(held) / "base")
        began = time.monotonic()
        _files(server.base, count)
        print(f"{count} pictures with thumbnails were written in {time.monotonic() - began:.0f} s", flush=True)
        return asyncio.run(_session(server, Path(held)))


def _files(base: Path, count: int) -> None:
    """Pictures, and the store that Load Dataset would have made of them: every tenth is the one before it, saved again."""
    from flux_atelier.core.dataset.opening import STORE as FILE
    from flux_atelier.core.dataset.opening import store_name
    from flux_atelier.core.dataset.scan import MEASURED, thumb_path
    from flux_atelier.core.dataset.sources import list_folder
    from flux_atelier.core.dataset.store import Store
    from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption

    folder, rng = base / "input" / "big", random.Random(0)
    held, digests = base / STORE / store_name(folder), []
    for i in range(count):
        seed = random.Random(i - (i % 10 == 9))
        shade = Image.frombytes("L", (24, 18), seed.randbytes(432)).resize((256, 192), Image.Resampling.BILINEAR)
        file = folder / f"{i // 500:03d}" / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        shade.save(file, "JPEG", quality=80 - i % 10)
        data = file.read_bytes() + i.to_bytes(4, "big")
        file.write_bytes(data)
        digests.append(hashlib.blake2b(data, digest_size=16).hexdigest())
        thumb = thumb_path(held / "thumbs", digests[-1])
        thumb.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, thumb)
    items = list_folder(folder).items
    with Store(held / FILE) as store:
        store.set_meta("root", str(folder))
        for start in range(0, count, 1000):
            store.put(
                StoredRow(
                    item.path, digest, item.stamp, item.beside, width=256, height=192, format="JPEG", measured=MEASURED,
                    scores={name: rng.random() for name in ("sharpness", "noise", "entropy")},
                    hashes={"dct": f"{rng.getrandbits(64):016x}"},
                    captions=(WrittenCaption(f"a picture of the sea, {item.path}", "model", "joy"),),
                )
                for item, digest in zip(items[start : start + 1000], digests[start : start + 1000], strict=True)
            )  # fmt: skip


async def _session(server, held: Path) -> list[Figure]:
    from browser import Browser
    from gallery_fake import Seen

    async with Browser(held / "profile", (1460, 960)) as page:
        seen, figures = Seen(page), []
        with server:
            await _at_home(seen, server)
            await page.evaluate(GRAPH)
            for part in (_first_paint, _paging, _deciding, _beside_a_prompt, _in_the_background, _reloaded):
                figures += await part(seen, server)
            before = await page.evaluate(PLACE)
        with server:  # another process at the same address
            figures += await _restarted(seen, server, before)
        bad = [said for said in page.console if said[0] == "exception" or "atelier" in said[1].lower()]
        print(
            f"{len(bad)} words of trouble on the console",
            *(f"{kind}: {said[:200]}" for kind, said in bad[:5]),
            sep="\n  ",
        )
    return figures


async def _at_home(seen, server) -> None:
    await seen.page.open(f"http://127.0.0.1:{server.port}")
    await _ready(seen)


async def _ready(seen) -> None:
    await seen.page.wait_for(
        "window.app && window.app.graph && window.app.extensionManager && window.comfyAPI?.api", 180
    )
    await asyncio.sleep(4)
    await seen.page.evaluate(WATCH)


async def _reload(seen) -> None:
    asked = asyncio.create_task(seen.page.send("Page.reload"))
    await asyncio.sleep(1)
    with suppress(
        RuntimeError
    ):  # ComfyUI asks whether to leave a workflow that was not saved; else there is no question
        await seen.page.send("Page.handleJavaScriptDialog", accept=True)
    await asked
    await _ready(seen)


async def _snap(seen, name: str) -> None:
    folder = os.environ.get("ATELIER_SCREENSHOTS")
    if folder:
        await seen.page.screenshot(Path(folder) / f"gallery50k_{name}.png")


async def _first_paint(seen, server) -> list[Figure]:
    began = time.perf_counter()
    await seen.page.evaluate("window.app.queuePrompt(0)")
    await seen.page.wait_for("window.bench.thumbs", 600)
    whole = time.perf_counter() - began
    rows, thumbs = [await seen.page.evaluate(f"window.bench.{name}") for name in ("rows", "thumbs")]
    asked = {part: [round(took) for took in await _took(seen, part)][:4] for part in ("/rows?", "/views/", "/thumbs/")}
    print(f"the first requests for it, in ms: {asked}", flush=True)
    await _snap(seen, "first")
    return [
        Figure("on screen: run of 50,000 files to pictures", whole, None, "s"),
        Figure("on screen: first rows after the answer", rows, None, "ms", most=1000),
        Figure("on screen: all their pictures", thumbs, None, "ms"),
    ]


async def _took(seen, part: str, after: int = 0) -> list[float]:
    """Milliseconds of the browser's requests whose address has a part, waiting for a connection included."""
    return (await seen.page.evaluate(f"window.bench.took({json.dumps(part)})"))[after:]


async def _jumps(seen, count: int) -> tuple[list[float], list[float]]:
    """Go to places by chance: milliseconds until their rows are seen, and those of the requests for them."""
    asked = len(await _took(seen, "/rows?"))
    height = await seen.page.evaluate("document.querySelector('.surface').offsetHeight")
    chance = random.Random(asked)
    shown = [await seen.page.evaluate(f"window.bench.jump({chance.randrange(height - 900)})") for _ in range(count)]
    return shown, await _took(seen, "/rows?", asked)


async def _paging(seen, server) -> list[Figure]:
    shown, asked = await _jumps(seen, JUMPS)
    await _snap(seen, "far")
    await seen.focus()
    await seen.filter("sharpness > 0.3 and undecided")
    began = time.perf_counter()
    await seen.until("/^3[45],/.test(document.querySelector('.foot .shown').textContent)")
    filtered = (time.perf_counter() - began) * 1000
    await _snap(seen, "filter")
    empty = "(f => { f.value = ''; f.dispatchEvent(new Event('change')); })(document.querySelector('.filter'))"
    await seen.page.evaluate(empty)
    await seen.until("document.querySelector('.foot .shown').textContent.startsWith('50,000')")
    return [
        Figure("on screen: page of 200, asked to answered", statistics.median(asked), None, "ms", most=100),
        Figure("on screen: the slowest of 20 pages", statistics.quantiles(asked, n=20)[-1], None, "ms"),
        Figure("on screen: a jump, 90 ms of calm included", statistics.median(shown), None, "ms"),
        Figure("on screen: a new filter", filtered, None, "ms"),
    ]


async def _deciding(seen, server) -> list[Figure]:
    await seen.focus()
    await seen.key("Home")
    await asyncio.sleep(1)
    for _ in range(UNDONE):
        await seen.key("k")
        await asyncio.sleep(0.05)
    await seen.until(f"window.bench.took('/decide').length === {UNDONE}")  # they are shown before they are answered
    assert (await seen.text(".counts")).startswith(f"kept {UNDONE}")
    await _snap(seen, "decided")
    answered, painted = await _took(seen, "/decide"), await seen.page.evaluate("window.bench.keys")
    began = time.perf_counter()
    await seen.key(*["u"] * UNDONE)
    await seen.until("document.querySelector('.counts').textContent.startsWith('kept 0')")
    back, undone = time.perf_counter() - began, await _took(seen, "/undo")
    assert (len(answered), len(painted), len(undone)) == (UNDONE,) * 3, (len(answered), len(painted), len(undone))
    assert await _decided(seen) == 0
    return [
        Figure("on screen: a decision, sent to answered", statistics.median(answered), None, "ms"),
        Figure("on screen: the slowest of 20 decisions", statistics.quantiles(answered, n=20)[-1], None, "ms"),
        Figure("on screen: a key to its paint", statistics.median(painted), None, "ms"),
        Figure("on screen: a step back, sent to answered", statistics.median(undone), None, "ms"),
        Figure("on screen: 50 steps back, all seen", back, None, "s"),
    ]


async def _decided(seen) -> int:
    """Decisions as the server counts them."""
    name = "window.app.graph._nodes.find(n => n.properties.flux_atelier_view).properties.flux_atelier_view.replace('/', '/views/')"
    counts = f"fetch('/flux_atelier/datasets/' + {name}).then((answer) => answer.json()).then((told) => told.counts)"
    told = await seen.page.evaluate(counts)
    return told["keep"] + told["reject"]


async def _prompt(client, number: int) -> float:
    """Seconds that a small prompt takes to its end; the number makes it another one than before."""
    prompt = {"1": {"class_type": "PrimitiveInt", "inputs": {"value": number}}}
    prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    began = time.perf_counter()
    status, answer = await client.queue(prompt)
    assert status == 200, answer
    events = await client.follow(answer["prompt_id"], seconds=60)
    assert events[-1][0] == "execution_success", events[-1]
    return (time.perf_counter() - began) * 1000


async def _beside_a_prompt(seen, server) -> list[Figure]:
    """Prompts run to their ends while somebody pages and decides, and after a decision nothing waits for the gallery."""
    from comfy_process import Client

    async with Client(server) as client:
        idle = [await _prompt(client, n) for n in range(5)]

        async def work():
            for _ in range(10):
                await _jumps(seen, 1)
                await seen.key("k", "r")

        working = asyncio.create_task(work())
        beside = [await _prompt(client, 100 + n) for n in range(10)]
        await working
    await asyncio.sleep(1)
    print(
        f"a small prompt takes {statistics.median(idle):.0f} ms, beside the gallery {statistics.median(beside):.0f} ms",
        flush=True,
    )
    return [Figure("a prompt while the gallery is used", statistics.median(beside), None, "ms", most=1000)]


async def _in_the_background(seen, server) -> list[Figure]:
    tab = (
        "[...document.querySelectorAll('.flux-atelier-gallery .tabs button')].find(b => b.textContent === '{}').click()"
    )
    began = time.perf_counter()
    await seen.page.evaluate(tab.format("Duplicates"))
    await seen.until("/ of 50,000/.test(document.querySelector('.pager').textContent)")
    await _snap(seen, "pending")
    await seen.page.evaluate(tab.format("All"))
    await asyncio.sleep(0.5)
    shown, asked = await _jumps(seen, JUMPS)
    decided = len(await _took(seen, "/decide"))
    await seen.key("Home")
    await asyncio.sleep(1)
    for _ in range(20):
        await seen.key("k")
        await asyncio.sleep(0.1)
    await seen.until(f"window.bench.took('/decide').length === {decided + 20}")
    decisions = await _took(seen, "/decide", decided)
    await seen.page.evaluate(tab.format("Duplicates"))
    await seen.until("document.querySelector('.pager').textContent")
    assert "Looking" in await seen.text(".pager"), "the search ended before anything was measured beside it"
    await seen.page.wait_for("document.querySelectorAll('.copy img:not([hidden])').length > 8", 600)
    whole = time.perf_counter() - began
    print(await seen.text(".pager"), flush=True)
    await asyncio.sleep(1)
    await _snap(seen, "groups")
    await seen.page.evaluate(tab.format("All"))
    return [
        Figure("groups of 50,000, in the background", whole, None, "s"),
        Figure("on screen: page of 200 meanwhile", statistics.median(asked), None, "ms", most=100),
        Figure("on screen: the slowest of 20 meanwhile", statistics.quantiles(asked, n=20)[-1], None, "ms"),
        Figure("on screen: a jump meanwhile", statistics.median(shown), None, "ms"),
        Figure("on screen: a decision meanwhile", statistics.median(decisions), None, "ms"),
    ]


async def _reloaded(seen, server) -> list[Figure]:
    await seen.focus()
    await seen.filter("sharpness > 0.5")
    await seen.until("/^2[45],/.test(document.querySelector('.foot .shown').textContent)")
    await seen.key(*["PageDown"] * 40, "ArrowRight")
    await asyncio.sleep(2)
    before = await seen.page.evaluate(PLACE)
    await _reload(seen)
    await _same_place(seen, before, "a reload")
    await _snap(seen, "reloaded")
    return []


async def _same_place(seen, before: str, what: str) -> None:
    """Wait until the gallery shows what it showed; raises AssertionError that tells both where it does not."""
    try:
        await seen.until(f"document.querySelector('.cell.focus') && {PLACE} === {json.dumps(before)}")
    except TimeoutError:
        await _snap(seen, "lost")
        raise AssertionError(f"after {what}: {await seen.page.evaluate(PLACE)}, not {before}") from None
    print(f"after {what} the gallery shows {before}", flush=True)


async def _restarted(seen, server, before: str) -> list[Figure]:
    """The page that was open all the time finds its server again, and so does a page that is opened anew."""
    began = time.perf_counter()
    await _same_place(seen, before, "a restart of the server")
    await seen.page.evaluate("document.querySelector('.cells').focus()")
    decided = await _decided(seen)
    await seen.key("r")
    await seen.until("document.querySelector('.foot .says').textContent.startsWith('Rejected')")
    await seen.key("u")
    await asyncio.sleep(1)
    assert await _decided(seen) == decided
    await _snap(seen, "restarted")
    before = await seen.page.evaluate(PLACE)  # the decision went on to the next picture
    await _reload(seen)
    await _same_place(seen, before, "a restart and a reload")
    print(f"{decided} decisions outlived the server, {time.perf_counter() - began:.0f} s", flush=True)
    return []
