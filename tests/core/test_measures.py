"""Measures of one picture: worked by hand, then beside scikit-image, then laws."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from flux_atelier.core.dataset import measures as M

NAMES = {
    *("sharpness", "sharp_global", "sharp_tile", "noise", "exposure", "clipped_low", "clipped_high", "contrast"),
    *("letterbox", "entropy", "resolution", "colourfulness", "mean_red", "mean_green", "mean_blue"),
}


def photos(side: int = 384) -> list[Image.Image]:
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    names = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "camera.png", "coins.png", "grass.png")
    return [ImageOps.fit(Image.open(folder / n).convert("RGB"), (side, side), Image.Resampling.LANCZOS) for n in names]


def with_noise(picture: Image.Image, sigma: float, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.asarray(picture, float) + rng.normal(0, sigma, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def apart(high, low) -> float:
    a, b = np.array(high)[:, None], np.array(low)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def test_every_measure_of_a_plain_red_picture():
    found = M.measure(Image.new("RGB", (80, 60), (255, 0, 0)))
    assert set(found) == NAMES
    assert all(isinstance(v, float) for v in found.values())
    grey = 76 / 255  # Rec. 601: 0.299 * 255
    wanted = {"mean_red": 1, "exposure": grey}
    # Red alone: rg = 255, yb = 127.5, no spread; 0.3 * hypot of the means.
    wanted["colourfulness"] = 0.3 * np.hypot(255, 127.5)
    for name, value in found.items():
        assert value == pytest.approx(wanted.get(name, 0), abs=1e-4), name


def test_half_black_half_white():
    picture = Image.new("L", (100, 100))
    picture.paste(255, (50, 0, 100, 100))
    found = M.measure(picture)
    assert found["entropy"] == pytest.approx(1)
    assert (found["clipped_low"], found["clipped_high"], found["contrast"]) == (0.5, 0.5, 1)
    assert found["exposure"] == pytest.approx(0.5)
    assert found["colourfulness"] == 0


def test_sharpness_in_whole_numbers_is_that_of_the_definition():
    convolve = pytest.importorskip("scipy.ndimage").convolve
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    cross = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    tiles = np.random.default_rng(0).integers(0, 256, (8, 8)).repeat(17, 0).repeat(17, 1)
    for grey in (*(np.asarray(p.convert("L")) for p in photos()[:3]), tiles, 255 * (np.indices((90, 90)).sum(0) % 2)):
        edges = convolve(grey.astype(float), cross)[1:-1, 1:-1]
        again = convolve(convolve(grey.astype(float), kernel), cross)[3:-3, 3:-3]
        before, after = (M._tile_means(e**2, M.TILE).ravel() for e in (edges[2:-2, 2:-2], again))
        telling = before >= max(2 * M.ROUNDING, np.quantile(before, 0.95) / 4)
        detail = (before[telling] - M.ROUNDING).sum()
        sure = detail / (detail + M.ROUNDING * telling.sum())
        wanted = sure * max(0, 1 - np.sqrt(after[telling].sum() / detail))
        found = M.sharpness(grey.astype(np.uint8))
        assert found["sharpness"] == pytest.approx(wanted, abs=1e-4)
        assert found["sharp_global"] == pytest.approx(edges.std(), rel=1e-4)
        assert found["sharp_tile"] == pytest.approx(np.sqrt(np.quantile(before, 0.9)), rel=1e-4)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((512, 40), (512, 40)), ((1024, 640), (512, 320)), ((3000, 1), (512, 1)), ((700, 701), (511, 512))],
)
def test_a_shrunk_picture_keeps_its_shape_and_tone(size, wanted):
    small = M.shrunk(Image.new("RGB", size, (10, 200, 30)))
    assert small.size == wanted and small.getcolors() == [(wanted[0] * wanted[1], (10, 200, 30))]


def test_laplacian_of_one_bright_pixel():
    grey = np.zeros((4, 4), np.float32)
    grey[1, 1] = 1
    assert M._laplacian(grey).tolist() == [[-4, 1], [1, 0]]


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (11, 11), (13, 200), (31, 33)])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode_and_size_gives_finite_numbers(size, mode):
    found = M.measure(Image.effect_noise(size, 80).convert(mode))
    assert set(found) == NAMES and np.isfinite(list(found.values())).all()


def test_the_picture_is_not_written_into():
    picture = photos()[0].resize((900, 900))
    before = picture.tobytes()
    M.measure(picture)
    assert picture.size == (900, 900) and picture.tobytes() == before


BARS = [((0, 40, 384, 304), 0.208), ((60, 0, 264, 384), 0.3125), ((30, 20, 324, 344), None), ((0, 0, 384, 384), 0)]


@pytest.mark.parametrize(("box", "share"), BARS)
@pytest.mark.parametrize("tone", [(0, 0, 0), (255, 255, 255)])
def test_bars_are_measured(box, share, tone):
    sheet = Image.new("RGB", (384, 384), tone)
    sheet.paste(photos()[2].resize(box[2:]), box[:2])
    wanted = 1 - box[2] * box[3] / 384**2 if share is None else share
    assert M.measure(sheet)["letterbox"] == pytest.approx(wanted, abs=0.01)


def test_a_subject_on_white_has_no_bars():
    sheet = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(sheet).ellipse([80, 80, 220, 220], fill=(180, 40, 30))
    assert M.measure(sheet)["letterbox"] == 0


def test_blur_is_told_from_sharp_and_from_bokeh():
    sharp = photos()
    blurred = [M.measure(p.filter(ImageFilter.GaussianBlur(2.2)))["sharpness"] for p in sharp]
    bokeh = []
    for p in sharp:
        mask = Image.new("L", p.size)
        ImageDraw.Draw(mask).ellipse([115, 115, 270, 270], fill=255)
        soft = p.filter(ImageFilter.GaussianBlur(6))
        bokeh.append(M.measure(Image.composite(p, soft, mask.filter(ImageFilter.GaussianBlur(4))))["sharpness"])
    assert apart([M.measure(p)["sharpness"] for p in sharp], blurred) >= 0.99
    assert apart(bokeh, blurred) >= 0.99


def test_sharpness_orders_blur_as_scikit_image_does():
    blur_effect = pytest.importorskip("skimage.measure").blur_effect
    picture = photos()[0]
    steps = [picture.filter(ImageFilter.GaussianBlur(s)) for s in (0, 0.7, 1.5, 3, 6)]
    ours = [M.measure(p)["sharpness"] for p in steps]
    theirs = [blur_effect(np.asarray(p.convert("L"))) for p in steps]
    assert ours == sorted(ours, reverse=True) and theirs == sorted(theirs)
    assert len(set(ours)) == 5


def test_a_mirrored_picture_measures_the_same():
    for before, after in zip(photos(), map(ImageOps.mirror, photos()), strict=True):
        one, other = M.measure(before), M.measure(after)
        assert one.pop("noise") == pytest.approx(other.pop("noise"), abs=0.4)  # the tiles lie elsewhere
        assert one == pytest.approx(other, rel=0.05, abs=0.05)


@pytest.mark.parametrize("sigma", [5, 10, 20])
def test_noise_is_read_within_15_percent(sigma):
    read = [M.measure(with_noise(p, sigma))["noise"] for p in photos()[:6]]
    assert np.median(read) == pytest.approx(sigma, rel=0.15)
    plain = M.measure(with_noise(Image.new("RGB", (256, 256), (90, 120, 150)), sigma))["noise"]
    assert plain == pytest.approx(sigma, rel=0.05)


def test_noise_of_grey_film_grain_is_read_too():
    rng = np.random.default_rng(0)
    pixels = np.clip(120 + rng.normal(0, 10, (256, 256)), 0, 255).astype(np.uint8)
    assert M.measure(Image.fromarray(pixels))["noise"] == pytest.approx(10, rel=0.05)


def test_black_bars_do_not_hide_noise():
    sheet = Image.new("RGB", (384, 384))
    sheet.paste(with_noise(photos()[0], 10).crop((0, 0, 384, 220)), (0, 82))
    assert M.measure(sheet)["noise"] == pytest.approx(10, rel=0.15)


def test_an_enlarged_picture_has_less_resolution():
    for picture in photos():
        small = picture.resize((192, 192), Image.Resampling.LANCZOS)
        found = [M.measure(small.resize((n, n), Image.Resampling.BICUBIC))["resolution"] for n in (192, 384, 768)]
        assert found[0] > found[1] > found[2]
        assert found[0] >= 0.75 and found[2] <= 0.5


def test_white_noise_fills_the_spectrum_and_blur_empties_it():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8))
    assert M.measure(noise)["resolution"] == 1
    assert M.measure(noise.filter(ImageFilter.GaussianBlur(3)))["resolution"] < 0.5


def test_entropy_beside_scikit_image():
    shannon = pytest.importorskip("skimage.measure").shannon_entropy
    for picture in photos():
        assert M.measure(picture)["entropy"] == pytest.approx(shannon(np.asarray(picture.convert("L"))), abs=1e-6)


@pytest.mark.parametrize("size", [(48, 32), (16, 16), (9, 70), (8, 8)])
def test_tiny_pictures_have_finite_numbers(size):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    with np.errstate(all="raise"):
        assert all(np.isfinite(value) for value in M.measure(picture).values())
