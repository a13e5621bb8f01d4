"""Hashes and their matching: by hand, beside imagehash and scipy, then laws."""

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset import hashes as H
from flux_atelier.core.errors import AtelierError


def picture(seed: int, size=(320, 240)) -> Image.Image:
    rng = np.random.default_rng(seed)
    layers = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (n, n), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC), float
        )
        for n in (4, 12, 40)
    )
    return Image.fromarray((layers / 3).astype(np.uint8))


def brute(queries, hashes, most):
    return [
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(queries)
        for j, b in enumerate(hashes)
        if (int(a) ^ int(b)).bit_count() <= most
    ]


def planted(rng, count: int, most: int) -> np.ndarray:
    """Random hashes, some of them again with up to `most` bits flipped."""
    base = rng.integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2)
    twins = base[: count // 2].copy()
    for i in range(len(twins)):
        for bit in rng.choice(64, rng.integers(0, most + 1), replace=False):
            twins[i] ^= np.uint64(1) << np.uint64(bit)
    return np.concatenate([base, twins])


def test_bits_by_hand():
    low = np.zeros((8, 8), np.float32)
    low[0, 0], low[0, 3], low[2, 1] = 9, 1, 2
    low[7, 7] = -5
    # The median is 0: above it are frequencies 0, 3 and 2 * 8 + 1.
    assert int(H.hash_frequencies(low)) == 1 << 0 | 1 << 3 | 1 << 17


def test_frequencies_beside_scipy():
    fft = pytest.importorskip("scipy.fft")
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    wanted = fft.dctn(pixels, axes=(1, 2), norm="ortho")[:, :8, :8]
    np.testing.assert_allclose(H.low_frequencies(pixels), wanted, rtol=1e-4, atol=1e-3)


def test_bits_beside_imagehash():
    imagehash = pytest.importorskip("imagehash")
    for seed in range(8):
        small = picture(seed).resize((32, 32))  # so that both see the same pixels
        # imagehash leaves the cosines unscaled: only the first row and column weigh otherwise, and no sign changes.
        theirs = sum(1 << i for i, bit in enumerate(imagehash.phash(small).hash.ravel()) if bit)
        assert (theirs ^ H.dct_hash(small)).bit_count() <= 4


def test_one_picture_hashes_as_in_a_batch():
    pictures = [picture(s) for s in range(4)]
    batch = H.dct_hashes(np.stack([H.reduced(p) for p in pictures]))
    assert [H.dct_hash(p) for p in pictures] == batch.tolist()
    assert batch.dtype == np.uint64 and all(isinstance(H.dct_hash(p), int) for p in pictures)


def test_no_pictures_are_no_hashes():
    assert H.dct_hashes(np.zeros((0, 32, 32), np.float32)).shape == (0,)
    assert H.orientation_hashes(np.zeros((0, 8, 8), np.float32)).shape == (0, 8)


@pytest.mark.parametrize("orientation", range(8))
def test_an_orientation_of_the_frequencies_is_that_of_the_pixels(orientation):
    pixels = H.reduced(picture(1))
    turned = H.orient(pixels, orientation)
    wanted = H.low_frequencies(turned)
    np.testing.assert_allclose(H.oriented(H.low_frequencies(pixels), orientation), wanted, atol=1e-2)
    assert H.orientation_hashes(H.low_frequencies(pixels)[None])[0, orientation] == H.dct_hashes(turned[None])[0]


T = Image.Transpose
TURNS = {
    1: ("mirrored", T.FLIP_LEFT_RIGHT),
    2: ("mirrored top to bottom", T.FLIP_TOP_BOTTOM),
    3: ("turned by 180 degrees", T.ROTATE_180),
    4: ("mirrored along the diagonal", T.TRANSPOSE),
    5: ("turned left", T.ROTATE_90),
    6: ("turned right", T.ROTATE_270),
    7: ("mirrored along the other diagonal", T.TRANSVERSE),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_orientations_have_pillows_names(orientation):
    name, turn = TURNS[orientation]
    pixels = H.reduced(picture(2, (128, 128)))
    turned = np.asarray(Image.fromarray(pixels).transpose(turn))
    assert (H.orient(pixels, orientation) == turned).all()
    assert H.ORIENTATION_NAMES[orientation] == name


def test_every_orientation_has_an_inverse():
    pixels = np.arange(9).reshape(3, 3)
    for o in range(8):
        assert (H.orient(H.orient(pixels, o), H._INVERSE[o]) == pixels).all()


def test_saving_and_scaling_change_few_bits_and_another_picture_many():
    one = picture(3)
    assert (H.dct_hash(one) ^ H.dct_hash(one.resize((160, 120)))).bit_count() <= 4
    assert (H.dct_hash(one) ^ H.dct_hash(one.point(lambda v: v * 0.7))).bit_count() <= 4
    assert (H.dct_hash(one) ^ H.dct_hash(picture(4))).bit_count() > 12


def test_distance_by_hand_with_and_without_numpys_count(monkeypatch):
    a = np.array([0, 0b1011, (1 << 64) - 1], np.uint64)
    assert H.distance(a, np.uint64(0)).tolist() == [0, 3, 64]
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert H.distance(a, np.uint64(0)).tolist() == [0, 3, 64]
    assert H.distance(a[:, None], a).tolist() == [[0, 3, 64], [3, 0, 61], [64, 61, 0]]


@pytest.mark.parametrize("most", range(8))
def test_matching_is_exact(most):
    rng = np.random.default_rng(most)
    everything = planted(rng, 120, 9)
    queries, hashes = everything[::2], everything[1:]
    found = H.match(queries, hashes, most)
    assert list(zip(*(c.tolist() for c in found), strict=True)) == brute(queries, hashes, most)


def test_a_pair_that_differs_by_two_bits_in_three_bands_and_one_in_the_last_is_found():
    apart = 0b11 | 0b11 << 16 | 0b11 << 32 | 1 << 63
    found = H.match(np.array([0], np.uint64), np.array([apart], np.uint64), 7)
    assert found.distance.tolist() == [7]


@pytest.mark.parametrize("most", [-1, 8])
def test_a_distance_without_promise_is_refused(most):
    with pytest.raises(AtelierError, match="0 to 7"):
        H.match(np.zeros(1, np.uint64), np.zeros(1, np.uint64), most)


@pytest.mark.parametrize(("q", "n"), [(0, 0), (0, 3), (3, 0)])
def test_matching_nothing_finds_nothing(q, n):
    assert H.match(np.zeros(q, np.uint64), np.zeros(n, np.uint64), 7).first.size == 0


def test_turned_pictures_are_matched_once_with_their_orientation():
    pixels = H.reduced(picture(5, (64, 64)))
    batch = np.stack([pixels, H.reduced(picture(6, (64, 64)))] + [H.orient(pixels, o) for o in (1, 5)])
    found, orientation = H.match_oriented(H.orientation_hashes(H.low_frequencies(batch)), 2)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]
    for i, j, o in zip(found.first, found.second, orientation, strict=True):
        assert (H.orient(batch[i], int(o)) == batch[j]).all()


def test_grey_is_opened_small_upright_and_on_white(tmp_path):
    wide = picture(7, (1600, 800))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    opened = H.open_grey(tmp_path / "a.jpg")
    assert opened.mode == "L" and opened.size == (200, 400)
    assert (H.dct_hash(opened) ^ H.dct_hash(wide.transpose(T.ROTATE_270))).bit_count() <= 4
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert H.open_grey(tmp_path / "b.png").getextrema() == (255, 255)
    Image.fromarray(np.full((8, 8), 128 * 256, np.uint16)).save(tmp_path / "c.png")
    assert H.open_grey(tmp_path / "c.png").getextrema() == (128, 128)
    (tmp_path / "d.jpg").write_bytes(b"no picture")
    with pytest.raises(AtelierError, match=r"d\.jpg"):
        H.open_grey(tmp_path / "d.jpg")
