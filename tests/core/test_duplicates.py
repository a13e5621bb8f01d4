"""Copies of a picture: groups, reasons and choices by hand, altered photographs, and what must not be joined."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from flux_atelier.core.dataset import blocks_vote as V
from flux_atelier.core.dataset import duplicates as D
from flux_atelier.core.dataset.record import Dataset, Decision, Row


def picture(seed: int, size=(360, 270)) -> Image.Image:
    """Something with detail at all scales."""
    rng = np.random.default_rng(seed)
    layers = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (n, n), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC), float
        )
        for n in (4, 12, 40)
    )
    return ImageOps.autocontrast(Image.fromarray((layers / 3).astype(np.uint8)))


def saved(p: Image.Image) -> Image.Image:
    held = io.BytesIO()
    p.save(held, "JPEG", quality=30)
    return Image.open(held).convert("L")


def noisy(p: Image.Image) -> Image.Image:
    pixels = np.asarray(p, float) + np.random.default_rng(0).normal(0, 12, (p.height, p.width))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cut(p: Image.Image, left: float, top: float, side: float) -> Image.Image:
    w, h = p.size
    return p.crop((int(left * w), int(top * h), int((left + side) * w), int((top + side) * h)))


def with_logo(p: Image.Image, box=(8, 8, 100, 50)) -> Image.Image:
    marked = p.copy()
    ImageDraw.Draw(marked).rectangle(box, fill=250)
    return marked


T = Image.Transpose
EASY = {
    "jpeg30": saved,
    "half": lambda p: p.resize((180, 135)),
    "dark": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.3),
    "noise": noisy,
    "mirrored": lambda p: p.transpose(T.FLIP_LEFT_RIGHT),
    "turned left": lambda p: p.transpose(T.ROTATE_90),
}
HARD = {
    "crop5": lambda p: cut(p, 0.05, 0, 0.95),
    "crop15": lambda p: cut(p, 0.04, 0.13, 0.85),
    "crop15 again": lambda p: cut(p, 0.15, 0.08, 0.85),
    "logo": with_logo,
    "logo below": lambda p: with_logo(p, (250, 220, 350, 265)),
    "crop and jpeg": lambda p: saved(cut(p, 0.02, 0.06, 0.9)),
}


@pytest.fixture(scope="module")
def crowd():
    return [picture(s) for s in range(40)]


def copies(count: int, **fields) -> list[D.Copy]:
    return [D.Copy(chr(97 + i), str(i), 100, **fields) for i in range(count)]


def test_links_become_groups():
    edges = [D.Edge(3, 1, "x"), D.Edge(5, 3, "y"), D.Edge(0, 2, "z")]
    assert D.group_edges(7, edges) == [[0, 2], [1, 3, 5]]
    assert D.group_edges(3, []) == []


BEST = [
    ([("a", 100, 0.9, False), ("b", 50, 0.1, True)], "b"),
    ([("a", 100, 0.9, False), ("b", 400, 0.1, False)], "b"),
    ([("a", 100, 0.3, False), ("b", 100, 0.5, False)], "b"),
    ([("b", 100, 0.5, False), ("a", 100, 0.5, False)], "b"),  # the first
]


@pytest.mark.parametrize(("rows", "kept"), BEST)
def test_the_best_copy_stays(rows, kept):
    looks = D.look_at([picture(1)] * 2)
    (group,) = D.find_duplicates([D.Copy(i, i, p, s, h) for i, p, s, h in rows], looks)
    assert group.kept == kept and len(group.left_out) == 1


def test_same_bytes_are_told_before_looks():
    looks = D.look_at([Image.new("L", (64, 64))] * 3)  # nothing in them: hashes are chance
    found = D.find_duplicates([D.Copy("a", "1", 9), D.Copy("b", "2", 9), D.Copy("c", "1", 9)], looks, robust=True)
    assert found == (D.Group("a", ("c",), (("a", "c", "same file"),)),)


def test_no_pictures_and_one_picture_have_no_duplicates():
    assert D.find_duplicates([], D.look_at([]), robust=True) == ()
    assert D.find_duplicates(copies(1), D.look_at([picture(1)]), robust=True) == ()


@pytest.mark.parametrize("form", EASY)
def test_the_fast_tier_finds(form, crowd):
    looks = D.look_at([*crowd, EASY[form](crowd[7])])
    (edge,) = D.fast_edges(looks)
    assert {edge.first, edge.second} == {7, 40}
    told = {"mirrored": "mirrored", "turned left": "turned"}.get(form, "apart")
    assert told in edge.why and "of 64 bits" in edge.why


@pytest.mark.parametrize("form", [*EASY, *HARD])
def test_the_robust_tier_finds(form, crowd):
    looks = D.look_at([*crowd, (EASY | HARD)[form](crowd[7])])
    (group,) = D.find_duplicates(copies(41), looks, robust=True)
    assert {group.kept, *group.left_out} == {"h", chr(97 + 40)}
    assert len(group.why) == 1


def test_crops_are_beyond_the_fast_tier(crowd):
    """Else the robust tier's test shows nothing."""
    assert not D.fast_edges(D.look_at([*crowd, HARD["crop15"](crowd[7])]))


def test_the_reason_tells_the_size_of_the_part(crowd):
    (edge,) = D.robust_edges(D.look_at([crowd[0], HARD["crop15"](crowd[0])]))
    share, rest = edge.why.split("% of blocks agree on ")
    height, width = (int(side.strip("% ")) for side in rest.removesuffix(" of it").split("x"))
    assert int(share) >= 90 and abs(height - 85) <= 2 and abs(width - 85) <= 2


def test_the_same_logo_on_empty_pictures_joins_nothing():
    rng = np.random.default_rng(0)
    empty = [Image.fromarray((110 + s + rng.normal(0, 4, (270, 360))).astype(np.uint8)) for s in range(3)]
    for i, p in enumerate(empty):
        ImageDraw.Draw(p).line([60 * i + 20, 100, 340 - 70 * i, 260], fill=60 + 20 * i, width=14)
    looks = D.look_at([with_logo(p, (4, 4, 200, 90)) for p in empty])
    apart = [bin(int(looks.turned[0, 0] ^ looks.turned[i, 0])).count("1") for i in (1, 2)]
    assert D.find_duplicates(copies(3), looks, robust=True) == (), apart


def test_different_pictures_stay_apart(crowd):
    assert D.find_duplicates(copies(40), D.look_at(crowd), robust=True) == ()


def test_order_of_the_pictures_does_not_matter(crowd):
    pictures = {f"{i:02}": p for i, p in enumerate([*crowd[:8], *(make(crowd[2]) for make in (EASY | HARD).values())])}

    def groups(names):
        rows = [D.Copy(n, n, 100) for n in names]
        return {
            frozenset((g.kept, *g.left_out))
            for g in D.find_duplicates(rows, D.look_at(pictures[n] for n in names), True)
        }

    names = list(pictures)
    assert groups(names) == groups(names[::-1]) == {frozenset(["02", *names[8:]])}


def test_a_window_is_read_as_pillow_reads_it():
    thumb = np.asarray(picture(3).resize((64, 64)), np.float32)
    wanted = np.asarray(Image.fromarray(thumb).resize((48, 48), Image.Resampling.BILINEAR, box=(8, 16, 56, 64)))
    got = V.sample(thumb[None], np.float32([[16 / 64, 8 / 64, 48 / 64, 48 / 64]]))[0]
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_fitting_finds_a_window_it_was_not_given():
    thumb = np.asarray(picture(3).resize((64, 64), Image.Resampling.BOX), np.float32)[None]
    true = np.float32([[0.06, 0.09, 0.87, 0.83]])
    part = V.sample(thumb, true)
    found = V.fit(thumb, part * 0.7 + 20, np.float32([[0.05, 0.05, 0.9, 0.9]]))
    np.testing.assert_allclose(found, true, atol=0.01)


def test_blocks_vote_by_hand():
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 255, (1, 48, 48)).astype(np.float32)
    b = a.copy()
    b[:, :12] = rng.uniform(0, 255, (12, 48))  # two of eight rows of blocks
    assert V.block_share(a, a).tolist() == [1]
    assert V.block_share(a, b).tolist() == [0.75]
    assert V.block_share(a, 255 - a).tolist() == [0]
    assert V.block_share(a * 0.5 + 30, a).tolist() == [1]
    assert V.block_share(np.full_like(a, 7), np.full_like(a, 7)).tolist() == [0]


def test_looks_are_not_written_into(crowd):
    looks = D.look_at([*crowd[:5], HARD["crop15"](crowd[2]), EASY["mirrored"](crowd[3])])
    before = looks.thumbs.copy(), looks.turned.copy()
    assert len(D.find_duplicates(copies(7), looks, robust=True)) == 2
    assert (looks.thumbs == before[0]).all() and (looks.turned == before[1]).all()


def test_leaving_out_is_told_and_taken_back():
    rows = (
        *tuple(Row(i, f"{i}.png", i, 10, 10) for i in "abc"),
        Row("d", "d.png", "d", 10, 10, rejected=Decision("blurred", "curate")),
    )
    dataset = Dataset("/x", rows)
    group = D.Group(
        "b", ("a", "d"), (("a", "c", "far"), ("a", "b", "hash 3 of 64 bits apart"), ("d", "b", "same file"))
    )
    marked = D.leave_out(dataset, [group])
    assert [r.id for r in marked.kept] == ["b", "c"]
    assert marked.rows[0].rejected == Decision("duplicate of b: hash 3 of 64 bits apart (b)", "duplicates")
    assert marked.rows[3].rejected == Decision("blurred", "curate")
    assert dataset.rows == rows and D.take_back(marked) == dataset


def test_a_link_through_a_third_copy_names_it():
    group = D.Group("b", ("a", "c"), (("b", "c", "same file"), ("c", "a", "hash 2 of 64 bits apart")))
    assert group.reason("a") == "hash 2 of 64 bits apart (c)"
