"""A row's id, path and captions stay together: through chains of operations, rescans, splits and exchange formats.

What single functions do is worked by hand in their own files; here are the laws that hold for all of them in any order.
"""

import os
import random
import re
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flux_atelier.core.dataset import scan as scanning
from flux_atelier.core.dataset.augment import AugmentOptions, variants
from flux_atelier.core.dataset.balance import BalanceOptions, balance
from flux_atelier.core.dataset.crop import CropOptions
from flux_atelier.core.dataset.curate import CurateOptions, curate, duplicates, ended
from flux_atelier.core.dataset.exchange.exchanged import Exchanged, Target
from flux_atelier.core.dataset.exchange.formats import FORMATS, import_rows
from flux_atelier.core.dataset.framing import crop_view
from flux_atelier.core.dataset.kept_view import keep_view, open_view
from flux_atelier.core.dataset.mirroring import mirror_text
from flux_atelier.core.dataset.opening import STORE, open_dataset
from flux_atelier.core.dataset.paging import Stores
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.split import SplitOptions, split_table, split_view
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.dataset.templates import fill_captions
from flux_atelier.core.dataset.transfer import export_view, path_of, with_exchanged
from flux_atelier.core.dataset.view import View, base_of
from flux_atelier.core.dataset.view_file import read_view, write_view

COUNT, COPIES, STEPS, CHAINS = 500, 40, 20, 1
FOLDERS = ("cats", "dogs", "10_sea", "漢字")
LENIENT = CurateOptions(min_side=8, min_sharpness=0.0)
TOKEN = re.compile(r"n(\d{4})")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Thousands of small files, each flushed to the disk, take minutes on a slow one."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --- five hundred pictures, and the same once more as another file system would list them ---


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    size = ((64, 48), (48, 64), (56, 56))[number % 3]
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, number: int, of: int | None = None) -> None:
    """A picture whose name and caption both tell its number, or a mirrored copy of another one."""
    file = folder / FOLDERS[number % len(FOLDERS)] / f"n{number:04d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = picture(number) if of is None else ImageOps.mirror(picture(of))
    drawn.save(file, compress_level=1)
    if number % 5:
        file.with_suffix(".txt").write_text(f"n{number:04d} looks to the left, 夕\n", encoding="utf-8")


def fill(folder: Path, numbers) -> None:
    for number in numbers:
        write(folder, number, number - COUNT // 2 if COUNT - COPIES <= number < COUNT else None)


@contextmanager
def listed(shuffle):
    """Folders as another file system lists them."""
    plain = os.scandir

    @contextmanager
    def scandir(path):
        with plain(path) as entries:
            yield shuffle(list(entries))

    os.scandir = scandir
    try:
        yield
    finally:
        os.scandir = plain


def opened(folder: Path, held: Path) -> View:
    return ended(open_dataset(folder, held))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The same pictures twice: written and listed in another order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        made = []
        for name, order, shuffle in (("one", 1, list), ("two", -1, lambda found: found[::-1])):
            base = tmp_path_factory.mktemp(name)
            fill(base / "pictures", range(COUNT)[::order])
            with listed(shuffle):
                view = opened(base / "pictures", base / "store")
            bare = [row for row in view.rows() if not row.captions][::2]
            with Store(view.store) as store:
                store.caption(
                    {r.id: [WrittenCaption(f"{Path(r.path).stem} by joy", "model", "joy")] for r in bare}, "joy"
                )
            made.append(base)
        yield made


# --- chains ---


@dataclass(frozen=True)
class Chain:
    """A view on its way, a folder for what is written, and the choices still to be drawn."""

    view: View
    folder: Path
    rng: random.Random

    def some(self, share: float) -> list[str]:
        return self.rng.sample(self.view.ids, max(1, int(share * len(self.view))))


def do_filter(chain: Chain) -> View:
    digits = chain.rng.randrange(100)
    return chain.view.filter(
        chain.rng.choice((f'not path:"{digits:02d}."', "captioned or width > 8", "kept and sharpness >= 0"))
    )


def do_sort(chain: Chain) -> View:
    return chain.view.sort(chain.rng.choice(("path", "-path", "-sharpness", "noise", "split", "-repeats", "width")))


def do_only(chain: Chain) -> View:
    return chain.view.only(chain.some(0.97))


def do_without(chain: Chain) -> View:
    return chain.view.without(dict.fromkeys(chain.some(0.02), "by chance"), "Chance")


def do_lay(chain: Chain) -> View:
    box = {"label": "subject", "x": 4, "y": 4, "w": 20, "h": 20, "score": 1.0}
    values = ({"tags": ("cat", "夕")}, {"boxes": (box,)}, {"repeats": chain.rng.randint(1, 9)})
    return chain.view.lay({own: chain.rng.choice(values) for own in chain.some(0.1)})


def do_variants(chain: Chain) -> View:
    ops = ({"name": "rotate", "degrees": chain.rng.randint(1, 20)},)
    return chain.view.with_variants({own: [{"ops": ops}] * 2 for own in chain.some(0.02)})


def do_augment(chain: Chain) -> View:
    rows = chain.view.only(chain.some(0.06)).rows()
    options = AugmentOptions(copies=2, degrees=10, color=0.5, seed=chain.rng.randrange(99))
    return chain.view.with_variants(variants(rows, options))


def do_split(chain: Chain) -> View:
    options = SplitOptions(validation=0.2, test=0.1, by=chain.rng.choice(("", "folder")), seed=chain.rng.randrange(9))
    return split_view(chain.view, options, [chain.some(0.01)])


def do_balance(chain: Chain) -> View:
    repeats = balance(chain.view.rows(), "folder", BalanceOptions(seed=chain.rng.randrange(9))).repeats
    return chain.view.lay({own: {"repeats": n} for own, n in repeats.items()})


def do_crop(chain: Chain) -> View:
    box = {"label": "subject", "x": 4, "y": 4, "w": 20, "h": 20, "score": 1.0}
    view = chain.view.lay({own: {"boxes": (box,)} for own in chain.some(0.95)})  # the others' subjects are looked for
    return ended(crop_view(view, chain.rng.choice(("square", "2:3")), 64, CropOptions()))[0]


def do_fill(chain: Chain) -> View:
    return fill_captions(chain.view, "{name}, {caption}", "")


def do_curate(chain: Chain) -> View:
    return ended(curate(chain.view, LENIENT))


def do_decide(chain: Chain) -> View:
    with Store(chain.view.store) as store:
        store.decide({base_of(own) for own in chain.some(0.02)}, chain.rng.choice(("keep", "reject", None)), "human")
    return chain.view.renewed()


def do_keep(chain: Chain) -> View:
    view = open_view(chain.view.store.parent, keep_view(chain.view))
    assert view.fingerprint == chain.view.fingerprint
    return view


def do_file(chain: Chain) -> View:
    view = read_view(write_view(chain.view, chain.folder / "view.json"))
    assert view.fingerprint == chain.view.fingerprint
    return view


PLAIN = (do_filter, do_sort, do_only, do_without, do_lay, do_variants, do_augment, do_split, do_balance, do_crop, do_fill,
         do_curate, do_decide, do_keep, do_file)  # fmt: skip


def words(view: View, rows: list[StoredRow]) -> dict[str, tuple[str, ...]]:
    return {row.id: tuple(c.text for c in view.captions_of(row)) for row in rows}


def check(view: View, rows: list[StoredRow]) -> None:
    """The bijection: every id one picture and its own words, in the rows and in the trainer's record."""
    assert [row.id for row in rows] == list(view.ids) and len(set(view.ids)) == len(rows) > 100
    by_path: dict[str, set[str]] = {}
    for row in rows:
        by_path.setdefault(row.path, set()).add(base_of(row.id))
        assert row.parent in (None, base_of(row.id))
        told = [TOKEN.findall(caption.text) for caption in row.captions]
        assert all(set(tokens) == {Path(row.path).stem[1:5]} for tokens in told), row.path
    assert all(len(ids) == 1 for ids in by_path.values())
    assert len({base_of(own) for own in view.ids}) == len(by_path)
    paths, said = {row.id: row.path for row in rows}, words(view, rows)
    for row in view.dataset().kept:
        assert row.path == paths[row.id] and tuple(c.text for c in row.captions) == said[row.id]


def check_step(name: str, before: dict[str, tuple[str, ...]], after: dict[str, tuple[str, ...]]) -> None:
    """What a step may do to the order and the words of rows that were there before it.

    before, after  words by id, in the view's order
    """
    stay = set(after) & set(before)
    if name not in ("do_sort", "do_only"):
        assert [own for own in after if own in stay] == [own for own in before if own in stay], name
    if name != "do_fill":
        assert all(after[own] == before[own] for own in stay), name
    for own in after.keys() - stay:  # a copy has its row's words, mirrored with it or not
        assert after[own] in (after[base_of(own)], tuple(mirror_text(text) for text in after[base_of(own)])), name


def exchange(chain: Chain, name: str) -> View:
    """Export and import in a format; every kept picture comes back once, with its own words, split and repeats."""
    view, out = chain.view, chain.folder / f"exported-{name}"
    export_view(view, name, Target(out, Path()))
    form = FORMATS[name]
    back = with_exchanged(opened(out, chain.folder / f"imported-{name}"), import_rows(name, out), form.place)
    wanted = {}
    for row in view.rows():
        if row.decision != "reject":
            said = tuple(c.text for c in view.captions_of(row))
            told = Exchanged(path_of(view, row), said, tuple(row.tags), row.split, row.repeats)
            assert wanted.setdefault(form.place(told), told) is told
    got = {row.path: row for row in back.rows()}
    assert got.keys() == wanted.keys() and len(got) == len(back)
    for path, told in wanted.items():
        row = got[path]
        assert (row.split, row.repeats) == (told.split, told.repeats), path
        assert told.captions == tuple(c.text for c in back.captions_of(row)), path
        assert tuple(row.tags) == told.tags, path
    return back


def trace(base: Path, folder: Path, seed: int, checked: bool) -> list[list]:
    """Run a chain and tell what each step left."""
    shutil.copytree(base / "store", folder / "store")
    with Store(folder / "store" / STORE) as store:
        view = View.of(store)
    chain, told = Chain(view, folder, random.Random(seed)), words(view, view.rows())
    turn, form = chain.rng.randrange(4, STEPS), chain.rng.choice([name for name in FORMATS if "parquet" not in name])
    drawn = [*PLAIN, *chain.rng.choices(PLAIN, k=STEPS - len(PLAIN))]
    chain.rng.shuffle(drawn)
    steps = []
    for number, step in enumerate(drawn):
        view = exchange(chain, form) if number == turn else step(chain)
        rows, before = view.rows(), told
        told = words(view, rows)
        if checked:
            check(view, rows)
        if checked and number != turn:
            check_step(step.__name__, before, told)
        steps.append([form if number == turn else step.__name__, *map(plain, rows)])
        chain = replace(chain, view=view)
    return steps


def plain(row: StoredRow) -> tuple:
    said, crop = tuple(c.text for c in row.captions), row.crop and tuple(row.crop)
    return row.id, row.path, said, row.split, row.repeats, row.tags, crop, str(row.ops), row.decision


@pytest.mark.parametrize("seed", range(CHAINS))
def test_chains_of_twenty_steps_keep_rows_together_in_one_order_everywhere(worlds, tmp_path, seed):
    one, two = (trace(base, tmp_path / str(n), seed, checked=n == 0) for n, base in enumerate(worlds))
    for number, (mine, others) in enumerate(zip(one, two, strict=True)):
        assert mine == others, f"step {number}, {mine[0]}"
    assert len(one) == STEPS


# --- rescans ---


@dataclass
class Spy:
    """What a scan looked at and wrote: paths by what was done with them."""

    examined: list[str]
    put: list[str]
    followed: list[str]
    left: list[str]


@pytest.fixture
def spy(monkeypatch):
    seen = Spy([], [], [], [])
    examine, put, follow, leave = scanning.examine, Store.put, Store.follow, Store.leave

    def examining(source, item, thumbs):
        seen.examined.append(item.path)
        return examine(source, item, thumbs)

    def listing(method, into):
        def wrapped(store, rows):
            rows = list(rows)
            into.extend(row if isinstance(row, str) else row.path for row in rows)
            return method(store, rows)

        return wrapped

    monkeypatch.setattr(scanning, "examine", examining)
    for name, method, into in (("put", put, seen.put), ("follow", follow, seen.followed), ("leave", leave, seen.left)):
        monkeypatch.setattr(Store, name, listing(method, into))
    return seen


def test_one_edited_file_touches_one_row(worlds, tmp_path, spy):
    pictures, held = tmp_path / "pictures", tmp_path / "store"
    shutil.copytree(worlds[0] / "pictures", pictures)
    shutil.copytree(worlds[0] / "store", held)

    def rescan() -> tuple[Spy, dict[str, StoredRow]]:
        for paths in vars(spy).values():
            paths.clear()
        with Store(held / STORE) as store:
            finish(scan(store, list_folder(pictures)))
            return replace(spy, **{name: list(paths) for name, paths in vars(spy).items()}), {
                row.path: row for row in store.rows(store.ids())
            }

    with Store(held / STORE) as store:
        store.decide(store.ids()[::7], "keep", "human")
    before = rescan()[1]
    changes = {
        "dogs/n0001.txt": (lambda file: file.write_text("n0001, another text"), Spy([], [], ["dogs/n0001.png"], [])),
        "cats/n0000.txt": (lambda file: file.write_text("n0000, a first text"), Spy([], [], ["cats/n0000.png"], [])),
        "dogs/n0009.txt": (Path.unlink, Spy([], [], ["dogs/n0009.png"], [])),
        "cats/n0004.png": (lambda file: picture(900).save(file), Spy(["cats/n0004.png"], ["cats/n0004.png"], [], [])),
        "cats/n0008.png": (Path.unlink, Spy([], [], [], ["cats/n0008.png"])),
        "cats/notes.md": (lambda file: file.write_text("n0001"), Spy([], [], [], [])),
    }
    for name, (change, wanted) in changes.items():
        change(pictures / name)
        seen, after = rescan()
        assert seen == wanted, name
        own = Path(name).with_suffix(".png").as_posix()
        assert {path: row for path, row in after.items() if path != own} == {
            path: row for path, row in before.items() if path != own
        }, name
        if wanted.followed:
            assert replace(after[own], captions=(), beside="") == replace(before[own], captions=(), beside=""), name
            assert [c.text for c in after[own].captions if c.origin == "file"] == (
                [(pictures / name).read_text()] if (pictures / name).exists() else []
            )
        before = after
    assert rescan()[0] == Spy([], [], [], [])


# --- splits ---


def test_a_split_of_a_view_parts_no_copies_and_a_tenth_more_moves_nobody(worlds, tmp_path):
    pictures, held = tmp_path / "pictures", tmp_path / "store"
    shutil.copytree(worlds[0] / "pictures", pictures)
    shutil.copytree(worlds[0] / "store", held)
    options = SplitOptions(validation=0.2, test=0.1, by="folder")

    def split(view: View) -> tuple[View, dict[str, str]]:
        groups = [(one.kept, *one.left_out) for one in ended(duplicates(view, view.rows(), False))]
        planted = [group for group in groups if len(group) > 1]
        assert len(planted) >= COPIES
        view = split_view(view, options, groups)
        splits = {row.id: row.split for row in view.rows()}
        assert all(len({splits[own] for own in group}) == 1 for group in groups)
        for counts in split_table(view.rows(), splits, "folder").values():
            total = sum(counts.values())
            assert total > 100
            assert abs(counts["validation"] / total - 0.2) <= 0.02 and abs(counts["test"] / total - 0.1) <= 0.02
        return view, splits

    view, first = split(opened(pictures, held))
    for number in range(COUNT, COUNT + COUNT // 10):  # a fifth of them are mirrored copies of what is split already
        write(pictures, number, number - COUNT if number % 5 == 0 else None)
    part = view.filter('not path:"cats"')
    assert {row.id: row.split for row in split_view(part, options).rows()} == {own: first[own] for own in part.ids}
    view, later = split(opened(pictures, held))
    assert len(later) == len(first) * 1.1
    assert {own: later[own] for own in first} == first
    flipped = view.with_variants({own: [{"ops": ({"name": "flip", "axis": "horizontal"},)}] for own in view.ids[::9]})
    assert all(row.split == later[base_of(row.id)] for row in split_view(flipped, options).rows())
    assert Counter(later.values())["train"] / len(later) == pytest.approx(0.7, abs=0.01)


# --- exchange formats, from a view to a view ---

SIGNS = "abc XYZ äß漢字夕🦊\u200d\u2028\u0085\x0b,;:\"'\\/{}[]()|#<>&%$\t\n\r\u0301\u202e"


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A view of a thousand pictures in odd folders, with a person's captions, tags, splits and repeats by chance."""
    base, rng = tmp_path_factory.mktemp("thousand"), random.Random(5)
    kinds = []
    for n in range(3):
        picture(n).save(base / "kind.png")
        kinds.append((base / "kind.png").read_bytes())
    for i in range(1000):
        folder = base / "in" / rng.choice((".", "sub", "漢 字", "a [b]", "it's"))
        folder.mkdir(parents=True, exist_ok=True)
        stem = "".join(rng.choices("abc äß漢🦊'#%&()[],;=+~", k=rng.randrange(5)))
        (folder / f"{i}{stem}.v.png").write_bytes(kinds[i % 3] + i.to_bytes(4, "big"))
    view = ended(open_dataset(base / "in", base / "store", measured=False))

    def text(most: int) -> str:
        return "".join(rng.choices(SIGNS, k=rng.randrange(1, most)))

    with Store(view.store) as store:
        said = {own: tuple(dict.fromkeys(text(40) for _ in range(rng.randrange(4)))) for own in view.ids}
        store.caption({own: [WrittenCaption(one) for one in texts] for own, texts in said.items()}, "human")
        splits = ("train", "train", "validation", "test")
        edits = {
            own: {"split": rng.choice(splits), "repeats": rng.choice((1, 1, 5)), "tags": tuple(text(9) for _ in range(rng.randrange(3) if said[own] else 0))}
            for own in view.ids
        }  # fmt: skip
        store.edit(edits, "human")
    return view.renewed()


@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_rows_of_a_view_come_back_as_a_view(thousand, tmp_path, name):
    if "parquet" in name:
        pytest.importorskip("pyarrow", reason="no pyarrow: parquet was not tested")
    out, form = tmp_path / "out", FORMATS[name]
    export_view(thousand, name, Target(out, Path()))
    told = import_rows(name, out)
    back = with_exchanged(ended(open_dataset(out, tmp_path / "store", measured=False)), told, form.place)

    def known(view: View, place) -> dict[str, tuple]:
        rows = view.rows()
        assert len({place(row) for row in rows}) == len(rows) == 1000
        return {
            place(row): (row.digest, words(view, [row])[row.id], tuple(row.tags), row.split, row.repeats)
            for row in rows
        }

    placed = {row.path: form.place(row) for row in told}
    assert known(back, lambda row: row.path) == known(thousand, lambda row: placed[row.path])
    assert import_rows(name, out) == told
    assert sum("\n" in text for row in told for text in row.captions) > 100


def test_datasets_loads_an_exported_view(thousand, tmp_path):
    datasets = pytest.importorskip("datasets", reason="no datasets: the imagefolder was not loaded by its own library")
    export_view(thousand, "imagefolder", Target(tmp_path / "out", Path()))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    got = {}
    for split, items in loaded.items():
        for item in items.cast_column("image", datasets.Image(decode=False)):
            path = Path(item["image"]["path"]).relative_to(tmp_path / "out" / split).as_posix()
            assert got.setdefault(path, item) is item
            item["split"] = split
    assert len(got) == 1000
    for row in thousand.rows():
        item = got[row.path]
        assert (item["split"], item["repeats"], tuple(item["tags"])) == (row.split, row.repeats, row.tags)
        assert tuple(item["captions"]) == tuple(c.text for c in row.captions), row.path


@pytest.mark.parametrize("name", [name for name in FORMATS if "parquet" not in name])
def test_a_picture_with_tags_alone_comes_back_without_a_caption(tmp_path, name):
    write(tmp_path / "in", 0)
    view = opened(tmp_path / "in", tmp_path / "store")
    export_view(view.lay({view.ids[0]: {"tags": ("cat", "sea")}}), name, Target(tmp_path / "out", Path()))
    told = import_rows(name, tmp_path / "out")
    back = with_exchanged(opened(tmp_path / "out", tmp_path / "back"), told, FORMATS[name].place)
    assert [(row.captions, row.tags) for row in back.rows()] == [((), ("cat", "sea"))]
    assert len(back.filter("captioned")) == 0


# --- the gallery ---


def test_the_gallery_shows_the_words_that_are_trained_with(tmp_path):
    """Mirrored copies and imported captions, also where a text file lies beside the picture."""
    write(tmp_path / "in", 1)
    view = opened(tmp_path / "in", tmp_path / "store")
    view = view.with_variants(variants(view.rows(), AugmentOptions(copies=1)))
    imported = view.lay({view.ids[0]: {"captions": (WrittenCaption("n0001 from a table", origin="file"),)}})
    stores = Stores()
    for one in (view, imported):
        with stores.use(tmp_path / "store") as held:
            shown = held.rows(keep_view(one), one.ids)
        assert words(one, shown) == words(one, one.rows())
    assert words(view, view.rows())[view.ids[1]] == ("n0001 looks to the right, 夕",)
    stores.close()
