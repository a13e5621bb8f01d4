"""Folders, captions, curation and buckets: worked by hand."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flux_atelier.core.dataset import curate as curation
from flux_atelier.core.dataset.buckets import Bucket, choose_bucket, make_buckets
from flux_atelier.core.dataset.captions import CaptionPlan, training_captions, with_trigger
from flux_atelier.core.dataset.contact_sheet import contact_sheet
from flux_atelier.core.dataset.folder import load_folder, open_picture
from flux_atelier.core.dataset.measures import measure
from flux_atelier.core.dataset.opening import listing, open_dataset, open_row, root_of, store_name
from flux_atelier.core.dataset.templates import fill_captions, write_sidecars
from flux_atelier.core.dataset.unpack import Take
from flux_atelier.core.dataset.view import Op
from flux_atelier.core.dataset.view_file import read_view, write_view
from flux_atelier.core.errors import AtelierError
from flux_atelier.core.images import fit_to


def photo(seed: int, size=(320, 240)) -> Image.Image:
    """Something with detail at all scales."""
    rng = np.random.default_rng(seed)
    layers = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC),
            float,
        )
        for n in (4, 16, 64, 256)
    )
    return Image.fromarray((layers / 4).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    photo(1).save(tmp_path / "one.jpg", quality=92)
    (tmp_path / "one.txt").write_text("a first picture\n", encoding="utf-8-sig")
    (tmp_path / "sub.x").mkdir()
    photo(2).save(tmp_path / "sub.x" / "two words.webp_1.png")
    (tmp_path / "sub.x" / "two words.webp_1.caption").write_text("zweites Bild ü")
    photo(3).convert("RGBA").save(tmp_path / "three.webp")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "one.jpg").read_bytes()[:2000])
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def opened(folder, store):
    """A folder as a view, its store elsewhere."""
    return curation.ended(open_dataset(folder, store))


def curated(view, **options):
    return curation.ended(curation.curate(view, curation.CurateOptions(**options)))


def test_load_reads_rows_captions_and_names_the_broken(folder):
    dataset = load_folder(folder)
    assert [r.path for r in dataset.rows] == ["one.jpg", "sub.x/two words.webp_1.png", "three.webp"]
    assert [[c.text for c in r.captions] for r in dataset.rows] == [["a first picture"], ["zweites Bild ü"], []]
    assert sorted(s.path for s in dataset.skipped) == ["broken.jpg", "page.png"]
    assert all("cannot be decoded" in s.reason for s in dataset.skipped)
    assert dataset.summary() == "3 of 3 pictures kept, 2 unreadable"


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_turn_is_undone(tmp_path, turn):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 10, 10))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # the transpose that its viewer undoes
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / "a.png", exif=exif)
    row = load_folder(tmp_path).rows[0]
    assert (row.width, row.height) == (40, 20)
    opened = open_picture(tmp_path / "a.png")
    assert opened.getpixel((2, 2)) == (255, 0, 0)
    assert opened.getpixel((37, 17)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_opens_as_rgb(tmp_path, mode):
    picture = Image.new("RGB", (20, 20), (200, 200, 200))
    if mode == "I;16":
        picture = Image.fromarray(np.full((20, 20), 200 * 256, dtype=np.uint16))
    else:
        picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    assert all(abs(v - 200) <= 2 for v in open_picture(path).getpixel((5, 5)))


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda p: p / "no", "There is no folder"), (lambda p: p, "has no readable picture")],
)
def test_a_wrong_folder_is_told(tmp_path, make, words):
    with pytest.raises(AtelierError, match=words):
        load_folder(make(tmp_path))


def test_save_then_load_is_equal(folder, tmp_path):
    view = curated(opened(folder, tmp_path / "store"), min_side=0)
    view = view.without({view.ids[-1]: "by hand"}, "me").then(Op("rotate", (("turns", 1),)))
    view = fill_captions(view, "{name}").lay({view.ids[0]: {"crop": (1, 2, 30, 40)}})
    assert view.left_out
    back = read_view(write_view(view, tmp_path / "d.json"))
    assert back == view and back.dataset() == view.dataset()
    (tmp_path / "bad.json").write_text(json.dumps({"rows": 1}))
    with pytest.raises(AtelierError, match="not a saved dataset"):
        read_view(tmp_path / "bad.json")


def test_split_is_stable_when_pictures_are_added(folder):
    before = {r.path: r.split for r in load_folder(folder, validation=2).rows}
    photo(9).save(folder / "added.png")
    after = {r.path: r.split for r in load_folder(folder, validation=2).rows}
    assert before.items() <= after.items()


def test_curation_gives_each_rejection_its_reason(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    photo(1, (400, 300)).save(root / "good.png")
    (root / "same bytes.png").write_bytes((root / "good.png").read_bytes())
    photo(1, (400, 300)).resize((300, 225)).save(root / "smaller.jpg", quality=80)
    photo(2, (100, 90)).save(root / "tiny.png")
    photo(3, (400, 300)).filter(ImageFilter.GaussianBlur(6)).save(root / "soft.png")
    whole = opened(root, tmp_path / "store")
    view = curated(whole, min_side=200)
    reasons = {r.path: r.rejected.reason if r.rejected else None for r in view.dataset().rows}
    assert reasons["good.png"] is None
    assert reasons["same bytes.png"] == "duplicate: of good.png, same file"
    assert reasons["smaller.jpg"].startswith("duplicate: of good.png, hash ")
    assert reasons["tiny.png"] == "too small: 100 x 90, below 200 pixels"
    assert reasons["soft.png"].startswith("blurred: sharpness 0.")
    assert view.summary() == "1 of 5 pictures kept, 1 blurred, 2 duplicate, 1 too small"
    assert len(curated(whole, min_side=0, min_sharpness=0, duplicates="off")) == 5
    assert whole.current  # nothing was written


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_noise": 5}, "noisy"), ({"max_letterbox": 0.1}, "barred"), ({"min_entropy": 3}, "nearly empty"),
        ({"min_resolution": 0.5}, "enlarged"), ({"max_clipped": 0.3}, "clipped"), ({"longest_aspect": 3}, "too long"),
    ],
)  # fmt: skip
def test_each_line_parts_what_it_says(tmp_path, options, word):
    root = tmp_path / "pictures"
    root.mkdir()
    good = photo(1, (640, 480))
    good.save(root / "good.png")
    barred = Image.new("RGB", (640, 480), "black")
    barred.paste(good.crop((0, 0, 640, 300)), (0, 90))
    noise = np.asarray(good, float) + np.random.default_rng(0).normal(0, 15, (480, 640, 3))
    faults = {
        "noisy": Image.fromarray(noise.clip(0, 255).astype(np.uint8)), "barred": barred, "nearly empty": Image.new("RGB", (640, 480), "gray"),
        "enlarged": photo(2, (160, 120)).resize((640, 480), Image.Resampling.BICUBIC), "clipped": Image.new("RGB", (640, 480), "white"),
        "too long": photo(3, (1200, 300)),
    }  # fmt: skip
    faults[word].save(root / "fault.png")
    view = curated(opened(root, tmp_path / "store"), min_sharpness=0, duplicates="off", **options)
    assert [row.path for row in view.rows()] == ["good.png"]
    assert view.left_out[0].reason.startswith(f"{word}: ")


def test_the_copy_with_a_human_caption_stays(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    photo(1).save(root / "a.png")
    photo(1).save(root / "b.png", compress_level=1)
    (root / "b.txt").write_text("mine")
    view = curated(opened(root, tmp_path / "store"), min_side=0)
    assert [row.path for row in view.rows()] == ["b.png"]


def test_variants_of_a_picture_are_no_copies_of_it(folder, tmp_path):
    view = opened(folder, tmp_path / "store")
    more = view.with_variants({view.ids[0]: [{"ops": ({"name": "flip", "axis": "horizontal"},)}]})
    assert curated(more, min_side=0).ids == more.ids


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "astronaut", "moon", "camera", "ihc"])
def test_sharpness_parts_sharp_photographs_from_blurred(name):
    from flux_atelier.trainer.nano.photos import photograph

    line = curation.CurateOptions().min_sharpness
    sharp = fit_to(photograph(name), 512, 512)
    soft = sharp.filter(ImageFilter.GaussianBlur(5))
    assert measure(sharp)["sharpness"] > 0.55
    assert measure(soft)["sharpness"] < line
    soft.paste(sharp.crop((128, 128, 384, 384)), (128, 128))
    assert measure(soft)["sharpness"] > line  # a sharp subject before a soft ground


def test_template_never_overwrites_a_human_caption(folder, tmp_path):
    whole = opened(folder, tmp_path / "store")
    view = fill_captions(whole, "{trigger} photo of {name} in {folder}", "ohwx")
    texts = {r.path: r.captions[0] for r in view.dataset().rows}
    assert texts["one.jpg"].text == "a first picture"
    assert texts["three.webp"].text == "ohwx photo of three in"
    assert texts["three.webp"].author == "template"
    again = fill_captions(view, "{caption}, {caption:template}, {caption:joy}{tags}")
    assert [row.path for row in again.filter('caption:"in, ohwx photo"').rows()] == ["three.webp"]
    assert len(again.rows()[2].captions) == 1
    assert whole.current and write_sidecars(view) == 1
    assert (folder / "one.txt").read_text(encoding="utf-8-sig").strip() == "a first picture"
    assert (folder / "three.txt").read_text().strip() == "ohwx photo of three in"


@pytest.mark.parametrize(
    ("template", "words"),
    [("{who}", "which is not known"), ("{name:x}", "which is not known"), ("{trigger}", "leaves no caption")],
)
def test_a_wrong_template_is_told(folder, tmp_path, template, words):
    with pytest.raises(AtelierError, match=words):
        fill_captions(opened(folder, tmp_path / "store"), template)


# --- opening ---


def test_the_listing_changes_with_pictures_and_captions_only(folder):
    before = listing(folder)
    (folder / "notes.md").write_text("x")
    assert listing(folder) == before
    (folder / "three.txt").write_text("a third")
    captioned = listing(folder)
    photo(9).save(folder / "added.png")
    assert len({before, captioned, listing(folder)}) == 3


def test_stores_of_different_sources_have_different_names(tmp_path):
    names = {store_name(tmp_path / name, take) for name in ("a/x y", "b/x y") for take in (None, Take(style="Cubism"))}
    assert len(names) == 4 and all(name.startswith("x-y-") for name in names)


def test_a_row_opens_as_the_view_says(folder, tmp_path):
    view = opened(folder, tmp_path / "store").then(Op("rotate", (("turns", 1),)))
    row = view.lay({view.ids[0]: {"crop": (0, 0, 100, 50)}}).rows()[0]
    assert open_row(view, root_of(view), row).size == (50, 100)


@pytest.mark.parametrize(
    ("text", "trigger", "expected"),
    [
        ("a cat", "", "a cat"),
        ("a cat", "ohwx", "ohwx, a cat"),
        ("a OHWX cat", "ohwx", "a OHWX cat"),
        ("a ohwxy cat", "ohwx", "ohwx, a ohwxy cat"),
        ("", "ohwx", "ohwx"),
    ],
)
def test_trigger_is_added_once(text, trigger, expected):
    assert with_trigger(text, trigger) == expected


def test_no_caption_and_no_trigger_is_told(folder):
    row = load_folder(folder).rows[2]
    assert training_captions(row, CaptionPlan("ohwx")) == ("ohwx",)
    with pytest.raises(AtelierError, match="has no caption and there is no trigger"):
        training_captions(row, CaptionPlan())


@pytest.mark.parametrize("resolution", [64, 512, 768, 1024])
def test_buckets_are_of_about_one_area_and_fit_the_model(resolution):
    buckets = make_buckets(resolution)
    assert Bucket(resolution, resolution) in buckets
    for b in buckets:
        assert b.width % 16 == b.height % 16 == 0
        assert b.width * b.height <= resolution**2
        assert 0.5 <= b.width / b.height <= 2
        assert Bucket(b.height, b.width) in buckets


@pytest.mark.parametrize(
    ("size", "ratio"), [((1000, 1000), 1.0), ((1600, 900), 16 / 9), ((600, 900), 2 / 3), ((3000, 300), 2.0)]
)
def test_the_nearest_bucket_is_chosen(size, ratio):
    chosen = choose_bucket(*size, make_buckets(1024))
    assert chosen.width / chosen.height == pytest.approx(ratio, rel=0.05)


def test_fit_cuts_evenly():
    picture = Image.new("RGB", (300, 100), "blue")
    picture.paste("red", (100, 0, 200, 100))
    fitted = fit_to(picture, 64, 64)
    assert fitted.size == (64, 64)
    assert fitted.crop((8, 0, 56, 64)).getcolors() == [(48 * 64, (255, 0, 0))]


def test_contact_sheet_shows_every_picture(folder, tmp_path):
    view = opened(folder, tmp_path / "store")
    sheet = contact_sheet(view.without({view.ids[0]: "blurred: x"}, "me"), columns=2)
    assert sheet.size == (2 * 168 + 8, 2 * 208 + 8)
    assert sheet.getpixel((8, 8)) == (186, 64, 52) and sheet.getpixel((8 + 168, 8)) == (74, 140, 92)
