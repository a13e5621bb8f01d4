"""The scan: every kind of picture named, nothing aborts, what has not changed is not opened, cancel and go on."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from flux_atelier.core.dataset.folder import open_picture
from flux_atelier.core.dataset.hashes import dct_hash
from flux_atelier.core.dataset.measures import measure
from flux_atelier.core.dataset.scan import BATCH, finish, open_any, open_header, scan, thumb_path
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import WrittenCaption
from flux_atelier.core.errors import AtelierError


def photo(seed: int, size=(96, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        photo(i).save(folder / f"{i}.png")
    (folder / "1.txt").write_text("one")
    return folder


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "set" / "atelier.db") as opened:
        yield opened


def run(store: Store, folder: Path, **options):
    return finish(scan(store, list_folder(folder), **options))


def test_a_row_holds_what_its_own_functions_say(store, pictures):
    last = run(store, pictures)
    assert (last.done, last.total, last.faults, last.path) == (5, 5, 0, "4.png")
    rows = store.rows(store.ids())
    assert [r.path for r in rows] == [f"{i}.png" for i in range(5)]
    assert [(r.width, r.height, r.format, r.notes) for r in rows] == [(96, 64, "PNG", ())] * 5
    opened = open_picture(pictures / "1.png")
    assert rows[1].scores == pytest.approx(measure(opened))
    assert rows[1].hashes == {"dct": f"{dct_hash(opened.convert('L')):016x}"}
    assert rows[1].captions == (WrittenCaption("one", origin="file"),)
    assert store.meta("root") == str(pictures)


def test_thumbnails_fit_256_and_lie_beside_the_store(store, tmp_path):
    (tmp_path / "p").mkdir()
    photo(1, (600, 300)).save(tmp_path / "p" / "a.png")
    run(store, tmp_path / "p")
    path = thumb_path(tmp_path / "set" / "thumbs", store.rows(store.ids())[0].digest)
    with Image.open(path) as thumb:
        assert (thumb.size, thumb.format) == ((256, 128), "JPEG")
        wanted = np.asarray(photo(1, (256, 128)), float)
        assert np.abs(np.asarray(thumb.convert("RGB"), float) - wanted).mean() < 4


def test_opening_without_measuring_finds_sizes_and_a_later_scan_measures(store, pictures):
    run(store, pictures, measured=False)
    rows = store.rows(store.ids())
    assert [(r.width, r.height) for r in rows] == [(96, 64)] * 5
    assert not any(r.scores for r in rows) and not (store.path.parent / "thumbs").exists()
    assert run(store, pictures, measured=False).total == 0
    assert run(store, pictures).total == 5
    assert [r.id for r in store.rows(store.ids())] == [r.id for r in rows]
    assert all(r.scores for r in store.rows(store.ids()))
    assert run(store, pictures, measured=False).total == 0


def test_what_has_not_changed_by_stat_is_not_opened(store, pictures):
    run(store, pictures)
    before, revision = store.rows(store.ids()), store.revision
    for file in pictures.iterdir():  # other bytes of the same length and time: whoever opens a file stumbles
        found = file.stat()
        file.write_bytes(b"\xff" * found.st_size)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    last = run(store, pictures)
    assert (last.total, store.revision) == (0, revision)
    assert store.rows(store.ids()) == before


def test_only_what_changed_is_read_again(store, pictures):
    run(store, pictures)
    before = {r.path: r for r in store.rows(store.ids())}
    (pictures / "1.txt").write_text("another text")
    (pictures / "2.txt").write_text("a first text")
    assert run(store, pictures).total == 0
    after = {r.path: r for r in store.rows(store.ids())}
    assert [p for p in after if after[p] != before[p]] == ["1.png", "2.png"]
    assert [c.text for c in after["1.png"].captions] == ["another text"]
    photo(77).save(pictures / "3.png")
    (pictures / "4.png").rename(pictures / "9.png")
    (pictures / "0.png").unlink()
    assert run(store, pictures).total == 2
    last = {r.path: r for r in store.rows(store.ids())}
    assert sorted(last) == ["1.png", "2.png", "3.png", "9.png"]
    assert last["9.png"].id == before["4.png"].id
    assert last["3.png"].id != before["3.png"].id


def test_a_cancelled_scan_goes_on_where_it_was(store, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3 * BATCH + 5):
        photo(i, (8, 8)).save(folder / f"{i:04d}.png")
    steps = scan(store, list_folder(folder))
    assert [next(steps).done for _ in range(2)] == [0, BATCH]
    steps.close()
    assert len(store.ids()) == BATCH
    last = run(store, folder)
    assert last.total == 2 * BATCH + 5 and len(store.ids()) == 3 * BATCH + 5
    with Store(tmp_path / "whole.db") as other:
        run(other, folder)
        assert other.rows(other.ids()) == store.rows(store.ids())


def test_an_empty_folder_does_not_empty_the_store(store, pictures):
    run(store, pictures)
    held = store.ids()
    shutil.rmtree(pictures)
    pictures.mkdir()
    with pytest.raises(AtelierError, match="has no picture"):
        run(store, pictures)
    assert store.ids() == held


def test_broken_files_are_named_and_nothing_aborts(store, pictures):
    whole = encoded(photo(9, (400, 300)), "JPEG", quality=95)
    (pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:-300])
    (pictures / "empty.webp").write_bytes(b"")
    (pictures / "page.jpg").write_text("<html>")
    (pictures / "broken.gif").write_bytes(b"GIF89a\x01")
    (pictures / "2.txt").write_bytes(b"\xff\xfe\x00")
    last = run(store, pictures)
    assert (last.done, last.faults) == (10, 5)
    assert [p for p, _ in store.faults()] == ["broken.gif", "cut.jpg", "cut.png", "empty.webp", "page.jpg"]
    reasons = dict(store.faults())
    assert "damaged or cut short" in reasons["cut.jpg"] and "damaged or cut short" in reasons["cut.png"]
    assert "is no picture" in reasons["page.jpg"]
    assert "not UTF-8" in store.rows(store.ids("r.path = '2.png'"))[0].notes[0]
    assert run(store, pictures).total == 0  # a broken file is not tried again before it changes
    (pictures / "page.jpg").write_bytes(whole)
    assert run(store, pictures).faults == 0
    assert len(store.faults()) == 4


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_are_undone_and_named(turn):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 10, 10))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(upright if back is None else upright.transpose(Image.Transpose(back)), "PNG", exif=exif)
    opened = open_any(data)
    assert (opened.width, opened.height) == opened.image.size == (40, 20)
    assert (open_header(data).width, open_header(data).height) == (40, 20)
    assert np.array_equal(np.asarray(opened.image), np.asarray(upright))
    assert opened.notes == ((f"turned: EXIF orientation {turn}",) if turn > 1 else ())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_mode_opens_as_the_trainer_opens_it(tmp_path, mode, kind):
    if (mode, kind) == ("CMYK", "PNG"):
        pytest.skip("PNG has no CMYK")
    picture = photo(3)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    else:
        picture = picture.convert(mode)
    file = tmp_path / f"a.{kind.lower()}"
    picture.save(file, kind)
    opened = open_any(file.read_bytes())
    assert opened.image.mode == "RGB"
    assert np.array_equal(np.asarray(opened.image), np.asarray(open_picture(file)))
    words = {"LA": "alpha", "RGBA": "alpha", "CMYK": "CMYK", "I;16": "deep"}
    assert [n.split(":")[0] for n in opened.notes] == ([words[mode]] if mode in words else [])


def test_hidden_colour_below_alpha_does_not_show():
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    opened = open_any(encoded(picture, "PNG"))
    assert opened.image.getpixel((3, 3)) == (255, 255, 255)
    assert opened.notes == ("alpha: laid on white",)


def test_an_animation_gives_its_first_frame_and_says_so():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        opened = open_any(data)
        assert opened.image.getpixel((4, 4)) == (255, 0, 0)
        assert "animated: first of 3 frames" in opened.notes


def test_a_cmyk_profile_is_obeyed_and_a_damaged_one_survived():
    picture = Image.new("CMYK", (8, 8), (200, 20, 20, 10))
    damaged = open_any(encoded(picture, "TIFF", icc_profile=b"no profile" * 20))
    assert damaged.notes == ("CMYK: by its ICC profile",)
    assert damaged.image.getpixel((1, 1)) == picture.convert("RGB").getpixel((1, 1))


def test_other_colour_spaces_stay_as_the_trainer_sees_them(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "a.png").write_bytes(encoded(photo(1), "PNG", icc_profile=profile))
    opened = open_any((tmp_path / "a.png").read_bytes())
    assert np.array_equal(np.asarray(opened.image), np.asarray(open_picture(tmp_path / "a.png")))


def test_sixteen_bits_a_colour_are_named():
    import zlib

    width, height = 4, 3
    lines = b"".join(b"\0" + b"\x12\x34" * 3 * width for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    opened = open_any(data)
    assert opened.image.getpixel((0, 0)) == (0x12, 0x12, 0x12)
    assert opened.notes == ("deep: more than 8 bits",)


def test_a_large_jpeg_is_decoded_smaller_but_measured_as_it_is():
    data = encoded(photo(1, (2400, 2200)), "JPEG")
    opened = open_any(data, 1000)
    assert opened.image.size == (1200, 1100)
    assert (opened.width, opened.height) == (2400, 2200)
    assert open_any(data).image.size == (2400, 2200)
