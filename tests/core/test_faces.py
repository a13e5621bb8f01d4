"""Boxes of other detectors, the detector without weights, and box facts: by hand, then on photographs, then laws."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from flux_atelier.core.dataset import faces as F
from flux_atelier.core.errors import AtelierError

SIZE = (200, 100)


@pytest.fixture(autouse=True)
def fresh():
    """No cascade stays from a test that hides packages."""
    F._cascade.cache_clear()
    yield
    F._cascade.cache_clear()


def photo(name: str, side: int = 256) -> Image.Image:
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    image = Image.open(folder / name).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def box(x, y, w, h, label="face", score=1.0):
    return {"label": label, "x": x, "y": y, "w": w, "h": h, "score": score}


# Boxes of other detectors, as comfy_extras makes them

ONE = {"x": 10, "y": 20, "width": 30, "height": 40}
READ = box(10, 20, 30, 40)


@pytest.mark.parametrize(
    "value, wanted",
    [
        (None, [[], []]),
        ([], [[], []]),
        ([[]], [[], []]),
        (ONE, [[READ], [READ]]),  # PrimitiveBoundingBox
        ([ONE], [[READ], [READ]]),  # the same for every picture, as DrawBBoxes takes it
        ([[ONE]], [[READ], [READ]]),
        ([[ONE], []], [[READ], []]),  # RT-DETR, MediaPipe, SAM, SDPose: a list for each frame
        ([None, [ONE, ONE]], [[], [READ, READ]]),
        ([[{**ONE, "label": "person", "score": 0.25}], []], [[box(10, 20, 30, 40, "person", 0.25)], []]),
        ([{**ONE, "metadata": {"label": "dog", "score": 0.5}}], [[box(10, 20, 30, 40, "dog", 0.5)]] * 2),
        ([{"x": 10, "y": 20, "w": 30, "h": 40}], [[READ], [READ]]),  # our own
        ([[{**ONE, "score": np.float32(0.5)}], []], [[box(10, 20, 30, 40, score=0.5)], []]),
    ],
)
def test_every_form_of_boxes_is_read(value, wanted):
    found = F.read_boxes(value, [SIZE, SIZE])
    assert found == wanted
    json.dumps(found)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ((-10, -10, 30, 30), (0, 0, 20, 20)),
        ((190, 90, 30, 30), (190, 90, 10, 10)),
        ((-5, -5, 300, 300), (0, 0, 200, 100)),
        ((40, 60, -30, -40), (10, 20, 30, 40)),
        ((200, 0, 10, 10), None),
        ((10, 10, 0, 10), None),
        ((-20, 10, 20, 10), None),
    ],
)
def test_boxes_are_cut_to_the_picture(given, wanted):
    found = F.read_boxes(dict(zip(("x", "y", "width", "height"), given, strict=True)), [SIZE])
    assert found == [[] if wanted is None else [box(*wanted)]]


@pytest.mark.parametrize(
    "value",
    [
        3,
        "10,20,30,40",
        [3],
        [[3]],
        {"x": 1, "y": 2, "width": 3},
        {**ONE, "x": "left"},
        {**ONE, "x": float("nan")},
        [[ONE, 1]],
    ],
)
def test_what_is_no_box_is_said(value):
    with pytest.raises(AtelierError, match="no bounding box"):
        F.read_boxes(value, [SIZE])


def test_boxes_of_other_pictures_are_refused():
    with pytest.raises(AtelierError, match="boxes for 3 pictures, but 2"):
        F.read_boxes([[ONE], [], []], [SIZE, SIZE])


def test_reading_what_was_read_changes_nothing():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y, w, h = (float(v) for v in rng.uniform(-150, 250, 4))
        found = F.read_boxes({"x": x, "y": y, "width": w, "height": h}, [SIZE])
        assert F.read_boxes(found, [SIZE]) == found
        for kept in found[0]:
            assert kept["x"] >= 0 and kept["x"] + kept["w"] <= 200 + 1e-9 and kept["w"] > 0


# Facts


def test_facts_by_hand():
    faces = [box(0, 0, 20, 10), box(50, 25, 100, 50), box(0, 0, 2, 2, "dog")]
    facts = F.face_facts(faces, SIZE)
    assert facts == {"faces": 2, "face_share": 0.25, "face_offset": 0.0, "face_side": 10}
    corner = F.face_facts([{**box(199, 99, 2, 2), "sharpness": 0.5}], SIZE)
    assert corner["face_offset"] == pytest.approx(1) and corner["face_sharpness"] == 0.5
    assert F.face_facts(faces, SIZE, "Dog")["faces"] == 1
    assert F.face_facts([], SIZE) == {"faces": 0, "face_share": 0.0}
    assert F.face_facts(None, SIZE) == {}


def test_sharpness_is_that_of_the_box_alone():
    rng = np.random.default_rng(1)
    detail = Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    both = Image.new("RGB", (256, 128))
    both.paste(detail, (0, 0))
    both.paste(detail.filter(ImageFilter.GaussianBlur(3)), (128, 0))
    faces = [box(4, 4, 120, 120), box(132, 4, 120, 120)]
    sharp, soft = F.with_sharpness(both, faces)
    assert sharp["sharpness"] > 0.6 > 0.4 > soft["sharpness"]
    assert faces == [box(4, 4, 120, 120), box(132, 4, 120, 120)]
    assert F.box_sharpness(both, box(3, 3, 4, 4)) == 0


# The detector


def middle(found) -> np.ndarray:
    return np.array([found["x"] + found["w"] / 2, found["y"] + found["h"] / 2])


def test_the_astronaut_has_one_face():
    image = photo("astronaut.png", 512)
    (found,) = F.find_faces(image)
    # Between the eyes and the mouth of that photograph.
    assert np.abs(middle(found) - [222, 117]).max() < 12
    assert 70 < found["w"] < 130 and found["label"] == "face" and 0.5 <= found["score"] < 1
    assert found["sharpness"] > 0.4
    json.dumps(found)


@pytest.mark.parametrize("change", ["mirror", "grey", "dark", "larger", "alpha"])
def test_the_face_is_found_in_other_forms(change):
    image = photo("astronaut.png", 512).crop((60, 0, 380, 280))
    wanted, size = np.array([162, 117]), image.size
    if change == "mirror":
        image, wanted = ImageOps.mirror(image), np.array([320 - 162, 117])
    elif change == "grey":
        image = image.convert("L")
    elif change == "dark":
        image = image.point(lambda v: v * 0.6)
    elif change == "larger":
        image = image.resize((size[0] * 3, size[1] * 3))
        wanted = wanted * 3
    else:
        image.putalpha(200)
    found = F.find_faces(image)
    assert len(found) == 1 and np.abs(middle(found[0]) - wanted).max() < 0.05 * max(image.size)


@pytest.mark.parametrize("name", ["coffee.png", "chelsea.png", "gravel.png", "page.png", "rocket.jpg"])
def test_no_face_where_there_is_none(name):
    assert F.find_faces(photo(name)) == []


@pytest.mark.parametrize("size", [(1, 1), (20, 400), (64, 64)])
def test_plain_and_tiny_pictures_have_no_face(size):
    pytest.importorskip("skimage")
    assert F.find_faces(Image.new("RGB", size, (200, 160, 140))) == []


class Hidden:
    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(name)


def hide(monkeypatch, *names):
    for name in [n for n in sys.modules if n.split(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(*names), *sys.meta_path])


def test_without_a_detector_the_way_to_one_is_said(monkeypatch):
    hide(monkeypatch, "skimage", "cv2")
    with pytest.raises(AtelierError, match="pip install scikit-image"):
        F.find_faces(Image.new("RGB", (64, 64)))


def test_opencv_without_its_cascades_is_no_detector(monkeypatch):
    class Five:  # OpenCV 5: neither CascadeClassifier nor its files
        class data:
            haarcascades = "/nowhere/"

    monkeypatch.setitem(sys.modules, "cv2", Five)
    assert F._haar() is None


@pytest.mark.skipif(not importlib.util.find_spec("cv2"), reason="OpenCV is not installed")
def test_an_installed_opencv_is_used_or_passed_over():
    cascade = F._haar()
    if cascade is None:
        import cv2

        assert not hasattr(cv2, "CascadeClassifier") or not Path(cv2.data.haarcascades).is_dir()
    else:
        assert cascade.detect(np.zeros((64, 64, 3), np.uint8)).shape == (0, 4)


def test_a_place_needs_the_votes_of_both_pictures():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64), dtype=np.uint8)).convert("RGB")
    hits = np.tile([[10.0, 10, 30, 30]], (6, 1))
    none = np.zeros((0, 4))
    assert [votes for _, votes in F._voted(image, hits, hits, 10)] == [12]
    assert F._voted(image, np.concatenate([hits, hits]), none, 10) == []
    assert F._voted(image, hits[:4], hits[:4], 10) == []
    # A weaker group inside a stronger one is a part of it.
    part = np.tile([[18.0, 18, 12, 12]], (5, 1))
    both = np.concatenate([hits, part])
    assert [votes for _, votes in F._voted(image, both, both, 10)] == [12]
    assert F._voted(Image.new("RGB", (64, 64), "grey"), hits, hits, 10) == []
