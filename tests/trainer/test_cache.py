"""The cache: keyed by content, found by sample, honest about damage."""

import pytest
import torch
from PIL import Image

from flux_atelier.core.dataset.folder import load_folder
from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.cache import Cache, encode
from flux_atelier.trainer.config import DataOptions


class CountingEncoder:
    """Latents and texts that say what they were made from, and a count of the work."""

    vae_id, text_id = "vae", "text"

    def __init__(self):
        self.pictures, self.texts = 0, []

    def encode_pixels(self, pixels):
        self.pictures += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]

    def encode_text(self, text):
        self.texts.append(text)
        return torch.full((4, 8), float(len(text))), torch.full((3,), float(len(text)))


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        size = (96, 64) if i % 2 else (64, 64)
        Image.new("RGB", size, (40 * i, 100, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("x" * (i + 1))
    return tmp_path


def run(folder, cache, **options):
    encoder = CountingEncoder()
    items = list(encode(load_folder(folder), encoder, DataOptions(resolution=64, **options), cache))
    return [i.sample for i in items], encoder


def test_every_sample_finds_its_own_latent_and_text(folder, tmp_path):
    cache = Cache(tmp_path / "cache")
    samples, _ = run(folder, cache)
    for i, sample in enumerate(samples):
        red = cache.get(sample.latent)[0][0].mean()
        assert red == pytest.approx(40 * i / 255 * 2 - 1, abs=0.01)
        assert cache.get(sample.texts[0])[1][0] == i + 1
    assert {(s.width, s.height) for s in samples} == {(8, 8), (10, 6)}


def test_a_second_run_encodes_nothing_and_an_edited_caption_only_itself(folder, tmp_path):
    run(folder, Cache(tmp_path / "cache"))
    _, encoder = run(folder, Cache(tmp_path / "cache"))
    assert (encoder.pictures, encoder.texts) == (0, [])
    (folder / "3.txt").write_text("edited")
    _, encoder = run(folder, Cache(tmp_path / "cache"))
    assert (encoder.pictures, encoder.texts) == (0, ["edited"])


def test_a_trigger_encodes_texts_again_and_no_picture(folder, tmp_path):
    run(folder, Cache(tmp_path / "cache"))
    _, encoder = run(folder, Cache(tmp_path / "cache"), trigger="ohwx")
    assert encoder.pictures == 0
    assert encoder.texts == [f"ohwx, {'x' * (i + 1)}" for i in range(6)]


def test_a_damaged_file_is_made_again(folder, tmp_path):
    cache = Cache(tmp_path / "cache")
    samples, _ = run(folder, cache)
    cache.path(samples[2].latent).write_bytes(b"broken")
    _, encoder = run(folder, Cache(tmp_path / "cache"))
    assert encoder.pictures == 1


def test_stopping_in_the_middle_loses_nothing(folder, tmp_path):
    items = encode(load_folder(folder), CountingEncoder(), DataOptions(resolution=64), Cache(tmp_path / "cache"))
    for item in items:
        if item.done == 4:
            break
    items.close()
    _, encoder = run(folder, Cache(tmp_path / "cache"))
    assert encoder.pictures == 2


def test_a_latent_that_is_not_finite_is_told(folder, tmp_path):
    encoder = CountingEncoder()
    encoder.encode_pixels = lambda pixels: torch.full((1, 16, 8, 8), float("nan"))
    with pytest.raises(AtelierError, match=r"non-finite latent of 0\.png"):
        list(encode(load_folder(folder), encoder, DataOptions(resolution=64), Cache(tmp_path / "cache")))


def test_memory_stays_within_its_limit_and_nothing_is_lost(tmp_path):
    cache = Cache(tmp_path / "cache", limit=1000)
    for i in range(10):
        cache.put(f"key{i}", torch.full((100,), float(i)))
    assert sum(t.nbytes for held in cache._held.values() for t in held) <= 1000
    assert [cache.get(f"key{i}")[0][0].item() for i in range(10)] == list(range(10))


def test_text_states_that_are_not_finite_are_told(folder, tmp_path):
    encoder = CountingEncoder()
    encoder.encode_text = lambda text: (torch.full((4, 8), float("nan")), torch.zeros(3))
    with pytest.raises(AtelierError, match="non-finite values for ''"):
        list(encode(load_folder(folder), encoder, DataOptions(resolution=64), Cache(tmp_path / "cache")))
