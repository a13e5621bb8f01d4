"""The cache: keyed by content, found by sample, honest about damage."""

import pytest
import torch
from PIL import Image

from flux_atelier.core.dataset.curate import ended
from flux_atelier.core.dataset.folder import load_folder
from flux_atelier.core.dataset.opening import open_dataset
from flux_atelier.core.dataset.view import Op
from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.batches import Plan
from flux_atelier.trainer.cache import Cache, Sample, encode, encode_regularisation
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


def test_shuffled_captions_keep_their_start_and_are_the_same_every_time(folder, tmp_path):
    for i in range(6):
        (folder / f"{i}.txt").write_text("ohwx, red hat, blue coat, green shoes")
    _, encoder = run(folder, Cache(tmp_path / "a"), shuffled_captions=4, kept_tags=2)
    _, again = run(folder, Cache(tmp_path / "b"), shuffled_captions=4, kept_tags=2)
    assert encoder.texts == again.texts
    assert len(set(encoder.texts) - {""}) == 2  # two parts are left to change places
    assert all(t.startswith("ohwx, red hat, ") for t in encoder.texts if t)


def test_each_line_may_be_a_caption_of_its_own(folder, tmp_path):
    (folder / "0.txt").write_text("a cat\n\n a sleeping cat ")
    samples, encoder = run(folder, Cache(tmp_path / "cache"), caption_lines=True, trigger="ohwx")
    assert len(samples[0].texts) == 2
    assert "ohwx, a sleeping cat" in encoder.texts


def test_captions_without_the_trigger_are_encoded_ahead(folder, tmp_path):
    (folder / "0.txt").write_text("OHWX on a sofa")
    cache, encoder = Cache(tmp_path / "cache"), CountingEncoder()
    chosen = DataOptions(resolution=64, trigger="ohwx", class_word="dog")
    items = list(encode(load_folder(folder), encoder, chosen, cache, prior=True))
    assert "dog on a sofa" in encoder.texts
    assert all(len(i.sample.priors) == len(i.sample.texts) for i in items)
    assert cache.get(items[0].sample.priors[0])[1][0] == len("dog on a sofa")


def test_masks_and_controls_lie_beside_their_picture_and_are_none_themselves(folder, tmp_path):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "0.mask.png")
    Image.new("RGB", (96, 64), (255, 0, 0)).save(folder / "1-masklabel.png")
    Image.new("RGB", (32, 32), (255, 0, 0)).save(folder / "2.control.png")
    assert len(load_folder(folder).rows) == 6
    cache = Cache(tmp_path / "cache")
    samples, encoder = run(folder, cache, mask="file")
    assert encoder.pictures == 7
    mask = cache.get(samples[0].mask)[0]
    assert mask.shape == (8, 8)
    assert mask[:, :4].min() == 1
    assert mask[:, 4:].max() == 0
    assert samples[1].mask
    assert samples[2].mask == ""
    assert cache.get(samples[2].control)[0][0].mean() > 0.9
    changed = load_folder(folder).fingerprint
    half.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "0.mask.png")
    assert load_folder(folder).fingerprint != changed


def test_the_alpha_channel_may_be_the_mask(folder, tmp_path):
    picture = Image.new("RGBA", (64, 64), (10, 20, 30, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 64, 16))
    picture.save(folder / "0.png")
    cache = Cache(tmp_path / "cache")
    samples, _ = run(folder, cache, mask="alpha")
    assert cache.get(samples[0].mask)[0][:2].max() == 0
    assert cache.get(samples[0].mask)[0][2:].min() == 1
    assert cache.get(samples[1].mask)[0].min() == 1


def test_a_regularisation_set_has_no_trigger_and_takes_the_class_word(folder, tmp_path):
    (folder / "0.txt").unlink()
    encoder = CountingEncoder()
    chosen = DataOptions(resolution=64, trigger="ohwx", class_word="dog")
    items = list(encode_regularisation(load_folder(folder), encoder, chosen, Cache(tmp_path / "cache")))
    assert {i.sample.split for i in items} == {"regularisation"}
    assert "dog" in encoder.texts
    assert not any("ohwx" in t for t in encoder.texts)


def test_a_crop_and_a_mirror_reach_picture_mask_and_control_alike(tmp_path):
    """The right half of a picture, mirrored: red stands where it belongs in all three, whatever their sizes."""
    root = tmp_path / "pictures"
    root.mkdir()
    picture = Image.new("RGB", (256, 128), "blue")
    picture.paste("red", (192, 0, 256, 128))
    picture.save(root / "a.png")
    picture.resize((128, 64)).save(root / "a.control.png")
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (48, 0, 64, 32))
    mask.save(root / "a.mask.png")
    (root / "a.txt").write_text("a")
    view = ended(open_dataset(root, tmp_path / "store"))
    done = view.lay({view.ids[0]: {"crop": (128, 0, 128, 128), "repeats": 3}}).then(
        Op("flip", (("axis", "horizontal"),))
    )
    cache, encoder = Cache(tmp_path / "cache"), CountingEncoder()
    options = DataOptions(resolution=64, mask="file")
    plain = next(iter(encode(view.dataset(), encoder, options, cache))).sample
    sample = next(iter(encode(done.dataset(), encoder, options, cache))).sample
    assert (sample.width, sample.height, sample.repeats) == (8, 8, 3)
    assert plain.latent != sample.latent and plain.mask != sample.mask and plain.control != sample.control
    for key in (sample.latent, sample.control):
        red = cache.get(key)[0][0]
        assert red[:, :3].min() > 0.9 and red[:, 5:].max() < -0.9
    half = cache.get(sample.mask)[0]
    assert half[:, :3].min() == 1 and half[:, 5:].max() == 0
    assert done.dataset().fingerprint != view.dataset().fingerprint


def test_repeats_show_a_picture_more_often():
    samples = [Sample(str(i), str(i), 8, 8, "k", ("t",), repeats=1 + 2 * (i == 1)) for i in range(3)]
    plan = Plan.of(samples, 1, 0)
    assert plan.batches_per_epoch == 5
    assert sorted(plan.batch(i)[0] for i in range(5)) == [0, 1, 1, 1, 2]
