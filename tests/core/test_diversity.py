"""Diversity: clones and orthogonal pictures by hand, a reference from the definition, then laws of the score."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flux_atelier.core.dataset.diversity import (
    coverage,
    describe,
    describe_thumbs,
    diversity_of,
    effective_size,
    entropy,
    evenness,
    mean_similarity,
    open_thumb,
    spread_of,
    typicality,
    unit,
    vendi_score,
)
from flux_atelier.core.errors import AtelierError


def by_definition(embeddings: np.ndarray) -> float:
    """The score from all N eigenvalues of the N x N kernel."""
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    held = values[values > 1e-12]
    return float(np.exp(-(held * np.log(held)).sum()))


@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.parametrize("width", [3, 64])
def test_clones_count_as_one(count, width):
    rows = np.tile(np.random.default_rng(0).normal(size=width), (count, 1))
    assert vendi_score(rows) == pytest.approx(1, abs=1e-5)
    assert mean_similarity(rows) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("count", "width"), [(1, 1), (5, 5), (5, 40), (64, 64)])
def test_orthogonal_pictures_count_as_many(count, width):
    rows = np.eye(count, width) * np.arange(1, count + 1)[:, None]
    assert vendi_score(rows) == pytest.approx(count, rel=1e-5)
    if count > 1:
        assert mean_similarity(rows) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("rows", "vendi", "similarity"),
    [
        ([[1, 0], [1, 0], [0, 1], [0, 1]], 2, 1 / 3),  # two of the six pairs are alike
        ([[1, 0], [1, 0], [1, 0], [0, 1]], 4 / 3**0.75, 0.5),
        ([[1, 0], [-1, 0]], 1, -1),
        ([[1, 0], [0, 0], [0, 0]], 3 / 2 ** (2 / 3), 1 / 3),  # without direction: alike, and unlike the rest
    ],
)
def test_by_hand(rows, vendi, similarity):
    assert vendi_score(np.array(rows)) == pytest.approx(vendi, rel=1e-5)
    assert mean_similarity(np.array(rows)) == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 30), (30, 30), (200, 30)])
def test_either_gram_matrix_gives_the_score_of_the_definition(shape):
    rows = np.random.default_rng(1).normal(size=shape)
    assert vendi_score(rows) == pytest.approx(by_definition(rows), rel=1e-4)


def test_mean_similarity_is_the_mean_of_all_pairs():
    rows = unit(np.random.default_rng(2).normal(size=(40, 6)))
    cosines = rows @ rows.T
    assert mean_similarity(rows) == pytest.approx(cosines[np.triu_indices(40, 1)].mean(), abs=1e-6)


def test_laws_of_the_score():
    random = np.random.default_rng(3)
    for _ in range(20):
        rows = random.normal(size=(random.integers(2, 30), random.integers(2, 30)))
        score = vendi_score(rows)
        turn = np.linalg.qr(random.normal(size=(rows.shape[1],) * 2))[0]
        assert 1 <= score <= min(rows.shape) + 1e-6
        assert vendi_score(np.repeat(rows, 3, axis=0)) == pytest.approx(score, rel=1e-4)
        assert vendi_score(random.permutation(rows @ turn) * 1e20) == pytest.approx(score, rel=1e-4)


def test_fifty_thousand_rows_need_no_matrix_of_their_pairs():
    centres = np.eye(8, 256, dtype=np.float32)
    assert vendi_score(np.tile(centres, (6250, 1))) == pytest.approx(8, rel=1e-4)


def test_a_flat_curve_tells_of_clones_and_a_straight_one_of_orthogonal_pictures():
    flat = coverage(np.tile(np.eye(2), (50, 1)))
    assert [count for count, _ in flat] == list(range(10, 101, 10))
    assert flat[-1][1] == pytest.approx(2, rel=1e-5) and flat[2][1] > 1.8
    assert coverage(np.eye(50)) == pytest.approx(np.array([(n, n) for n in range(5, 51, 5)]), rel=1e-5)


def test_the_curve_ends_with_the_score_of_all_and_is_the_same_each_time():
    rows = np.random.default_rng(4).normal(size=(333, 17))
    curve = coverage(rows)
    assert curve[-1] == (333, pytest.approx(vendi_score(rows), rel=1e-5))
    assert curve == coverage(rows)


def test_the_last_tenth_brings_a_tenth_of_orthogonal_pictures_and_nothing_of_clones():
    assert diversity_of(np.eye(50)).last_tenth == pytest.approx(0.1, abs=1e-6)
    assert diversity_of(np.ones((50, 3))).last_tenth == pytest.approx(0, abs=1e-6)
    assert diversity_of(np.eye(5)).last_tenth is None
    alone = diversity_of(np.eye(1))
    assert (alone.pictures, alone.vendi, alone.curve[-1]) == (1, pytest.approx(1), (1, pytest.approx(1)))


def test_the_odd_one_out_is_the_least_typical():
    rows = np.array([[1, 0.1], [1, 0], [1, -0.1], [-0.2, 1]])
    assert typicality(rows).argmin() == 3


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((0, 4)), np.array([[1.0, np.nan]])])
def test_embeddings_of_another_shape_are_refused(wrong):
    with pytest.raises(AtelierError, match="embedding"):
        vendi_score(wrong)


@pytest.mark.parametrize(
    ("clusters", "singles", "expected"),
    [
        ([], [1] * 10, (10, 10, 0, 0, 10)),
        ([[1] * 5], [1] * 5, (10, 6, 1, 5, 100 / 30)),
        ([[1, 1], [1, 1]], [], (4, 2, 2, 2, 2)),
        ([], [10, 1], (2, 2, 0, 0, 121 / 101)),  # one picture is repeated ten times
        ([], [0, 1, 1], (3, 3, 0, 0, 2)),
        ([], [], (0, 0, 0, 0, 0)),
    ],
)
def test_copies_and_repeats_leave_fewer_pictures_that_count(clusters, singles, expected):
    found = effective_size(clusters, singles)
    assert (found.pictures, found.distinct, found.groups, found.largest) == expected[:4]
    assert found.by_weight == pytest.approx(expected[4])


def test_entropy_and_evenness_by_hand():
    assert (entropy([1, 1, 1, 1]), entropy([5]), entropy([]), entropy([2, 1, 1, 0])) == (2, 0, 0, 1.5)
    assert (evenness([3, 3, 3]), evenness([9, 0]), evenness([4])) == (pytest.approx(1), 0, 0)


def test_a_column_by_hand():
    found = spread_of("style", ["Cubism", None, "", "Baroque", "Cubism", "Cubism", 7])
    assert (found.filled, found.values, found.top, found.share) == (5, 3, "Cubism", 0.6)
    assert found.counts == (("Cubism", 3), ("7", 1), ("Baroque", 1))


def scene(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (160, 120), tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        (x0, x1), (y0, y1) = np.sort(random.integers(0, 160, 2)), np.sort(random.integers(0, 120, 2))
        pen.ellipse([int(x0), int(y0), int(x1), int(y1)], tuple(random.integers(0, 256, 3).tolist()))
    return picture


def test_the_descriptor_tells_a_picture_saved_again_from_another_picture():
    scenes = [scene(seed) for seed in range(30)]
    again = [s.resize((80, 60), Image.Resampling.BICUBIC).point(lambda v: min(255, v + 8)) for s in scenes]
    rows = unit(describe(scenes + again))
    cosines = rows[:30] @ rows[30:].T
    others = cosines[~np.eye(30, dtype=bool)]
    assert cosines.diagonal().min() > 0.85
    assert others.max() < cosines.diagonal().min() and abs(others.mean()) < 0.3


def test_descriptors_do_not_depend_on_the_other_pictures():
    scenes = [scene(seed) for seed in range(5)]
    whole = describe(scenes)
    assert whole.shape == (5, 236) and np.array_equal(whole[3:4], describe(scenes[3:4]))


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 60)])
def test_even_pictures_have_a_finite_descriptor_and_are_clones_of_themselves(color):
    rows = describe([Image.new("RGB", (64, 64), color), Image.new("RGB", (90, 20), color)])
    assert np.isfinite(rows).all() and vendi_score(rows) == pytest.approx(1, abs=1e-5)


def test_of_many_thumbnails_the_same_sample_is_opened_whatever_their_order(tmp_path):
    ids, paths = [f"id{i}" for i in range(40)], [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        scene(i).save(path)
    paths[7].write_bytes(b"no picture")
    paths[8].unlink()
    places, rows, gone = describe_thumbs(ids, paths, 25)
    assert len(places) + gone == 25 and len(rows) == len(places) and places == sorted(places)
    turned, _, _ = describe_thumbs(ids[::-1], paths[::-1], 25)
    assert {ids[::-1][i] for i in turned} == {ids[i] for i in places}
    assert describe_thumbs(ids, paths, 100)[2] == 2
    assert open_thumb(paths[7]) is None and open_thumb(paths[8]) is None
