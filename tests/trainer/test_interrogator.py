"""Zero-shot verdicts: probabilities and abstention by hand, calibration on drawn scores, tiny CLIP and SigLIP folders."""

import json

import numpy as np
import pytest
import tiny_captioners
import torch
from PIL import Image

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.captioners.interrogator import (
    Axis,
    Calibration,
    Interrogator,
    Verdict,
    calibrate,
    judge,
    probabilities,
    read_vocabulary,
)

CPU = torch.device("cpu")


def test_probabilities_by_hand():
    logits = np.log([[1.0, 3.0], [4.0, 4.0]])
    assert probabilities(logits) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert probabilities(2 * logits, 2.0) == pytest.approx(probabilities(logits))
    assert probabilities(np.array([1e4, 0.0])) == pytest.approx([1.0, 0.0])


def test_none_where_no_entry_stands_out():
    logits = np.log([1.0, 3.0])
    assert judge(logits, ["a", "b"], Calibration(1.0, 0.7)) == Verdict("b", "b", pytest.approx(0.75))
    assert judge(logits, ["a", "b"], Calibration(1.0, 0.8)) == Verdict("", "b", pytest.approx(0.75))


def drawn(count: int, sureness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at temperature `sureness` is the true chance of each label."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (count, 5))
    labels = np.array([rng.choice(5, p=p) for p in probabilities(true)])
    return true * sureness, labels


@pytest.mark.parametrize("sureness", [0.5, 1.0, 4.0])
def test_calibration_finds_how_sure_the_model_may_be(sureness):
    logits, labels = drawn(4000, sureness)
    found = calibrate(logits, labels, accuracy=0.8)
    assert found.temperature == pytest.approx(sureness, rel=0.08)
    fresh, truth = drawn(4000, sureness, seed=1)
    chances = probabilities(fresh, found.temperature)
    answered = chances.max(-1) >= found.threshold
    assert 0.2 < answered.mean() < 0.9
    assert (chances.argmax(-1) == truth)[answered].mean() == pytest.approx(0.8, abs=0.03)
    assert (chances.argmax(-1) == truth).mean() < 0.75


def test_calibration_by_hand():
    logits = np.array([[float(i), 0.0] for i in range(1, 11)])
    every = calibrate(logits, np.zeros(10, int), 0.9)
    assert every.threshold == pytest.approx(probabilities(logits, every.temperature).max(-1).min())
    # The two least sure are wrong: 8 of 8 are right, 8 of 9 are too few.
    labels = np.array([1, 1] + [0] * 8)
    some = calibrate(logits, labels, 0.95)
    assert (probabilities(logits, some.temperature).max(-1) >= some.threshold).sum() == 8
    assert calibrate(logits, np.ones(10, int), 0.9).threshold == 1.0
    with pytest.raises(AtelierError, match="too few"):
        calibrate(logits[:9], labels[:9])


def test_the_vocabulary_that_comes_with_the_pack():
    axes = read_vocabulary()
    assert {name: len(axis.entries) for name, axis in axes.items()} == {"style": 27, "medium": 24, "artist": 21}
    for axis in axes.values():
        phrases = [phrase for group in axis.entries.values() for phrase in group]
        assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize(
    "axis",
    [
        {},
        [],
        {"templates": ["of {}"], "entries": {"a": ["b"]}},
        {"templates": ["of"], "entries": {"a": ["b"], "c": ["d"]}},
        {"templates": ["{}"], "entries": {"a": [], "c": ["d"]}},
    ],
)
def test_a_vocabulary_with_a_hole_is_refused(axis, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"mood": axis}))
    with pytest.raises(AtelierError, match=r"own.json: mood needs templates"):
        read_vocabulary(tmp_path / "own.json")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, tmp_path_factory):
    import transformers as T

    made = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    words = tiny_captioners.tokenizer([], framed=True, model_max_length=64)
    text = tiny_captioners.SMALL | {"vocab_size": len(words), "max_position_embeddings": 64} | tiny_captioners.ENDS
    size = {"height": 28, "width": 28}
    if request.param == "clip":
        model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=tiny_captioners.SEEN, projection_dim=16))
        images = T.CLIPImageProcessor(size=size, crop_size=size)
        processor = T.CLIPProcessor(image_processor=images, tokenizer=words)
    else:
        model = T.SiglipModel(T.SiglipConfig(text_config=text, vision_config=tiny_captioners.SEEN))
        processor = T.SiglipProcessor(image_processor=T.SiglipImageProcessor(size=size), tokenizer=words)
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return made


AXES = {"mood": Axis(("a {} picture", "{}"), {"calm": ("calm", "quiet"), "wild": ("wild",), "odd": ("odd",)})}


def test_logits_are_those_of_the_model_itself(folder):
    import transformers as T

    pictures = [Image.effect_noise((40, 30), 60).convert("RGB"), Image.new("RGB", (20, 50), "red")]
    found = Interrogator(folder, CPU, AXES).logits(pictures)["mood"]
    model, processor = T.AutoModel.from_pretrained(folder).eval(), T.AutoProcessor.from_pretrained(folder)
    single = {"x": Axis(("{}",), {"calm": ("calm",), "wild": ("wild",)})}
    padding = "max_length" if "siglip" in folder.name else True
    batch = processor(text=["calm", "wild"], images=pictures, padding=padding, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits_per_image
        if "siglip" in folder.name:
            expected = expected - model.logit_bias
    assert torch.tensor(Interrogator(folder, CPU, single).logits(pictures)["x"]).allclose(expected, atol=1e-4)
    assert found.shape == (2, 3)
    assert not np.allclose(found[0], found[1])


def test_verdicts_on_every_axis(folder):
    interrogator = Interrogator(folder, CPU, AXES)
    picture = Image.new("RGB", (30, 30), "red")
    sure = interrogator.verdicts([picture] * 2, {"mood": Calibration(1.0, 0.0)})
    never = interrogator.verdicts([picture], {"mood": Calibration(1.0, 1.01)})
    assert sure[0] == sure[1]
    assert sure[0]["mood"].name == sure[0]["mood"].likeliest == never[0]["mood"].likeliest
    assert never[0]["mood"].name == ""


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(AtelierError, match=r"no config.json"):
        Interrogator(tmp_path, CPU, AXES)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(AtelierError, match="is a bert"):
        Interrogator(tmp_path, CPU, AXES)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(AtelierError, match=r"no .safetensors"):
        Interrogator(tmp_path, CPU, AXES)
