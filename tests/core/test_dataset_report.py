"""The report: planted distributions, counts and advice by hand, then what a page and a sheet must hold."""

import html.parser
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset.advice import Figures, advise
from flux_atelier.core.dataset.buckets import Bucket, choose_bucket, make_buckets
from flux_atelier.core.dataset.duplicates import Group
from flux_atelier.core.dataset.report import MEASURES, Found, ReportOptions, count_buckets, report
from flux_atelier.core.dataset.scan import thumb_path, write_thumb
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.dataset_page import page, write_page
from flux_atelier.core.evaluation.dataset_plots import bars, histogram, overview, plots

EVIL = '<script>alert("x")</script> & ünïcode'


def row(number: int, **values) -> StoredRow:
    made = StoredRow(f"d/{number}.png", f"{number:032x}", width=1024, height=1024, format="PNG", id=f"r{number}")
    return replace(made, **values)


def named(found, name: str):
    return next(d for d in found.distributions if d.name == name)


def suggested(found) -> dict[str, int]:
    return {s.name: s.value for s in found.advice}


@pytest.fixture
def thumbs(tmp_path):
    folder = tmp_path / "thumbs"
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((256, 192), Image.Resampling.BICUBIC)
        write_thumb(thumb_path(folder, f"{number:032x}"), picture)
    return folder


def planted() -> list[StoredRow]:
    rows = []
    for n in range(12):
        caption = WrittenCaption(f"trg, oil painting, a {EVIL if n == 3 else 'cat'}", "model", "joy")
        rows.append(
            row(
                n,
                scores={"sharpness": n / 12, "exposure": 0.5, "mean_red": 1.0, "mean_green": 0.0, "mean_blue": 0.0},
                captions=(caption,) if n != 5 else (),
                columns={"style": "Cubism" if n < 9 else EVIL, "artist": f"a{n}"},
                split="validation" if n == 11 else "train",
                width=2048 if n < 4 else 1024,
                boxes=() if n < 2 else None,
            )
        )
    return rows


def test_rejected_and_faulty_pictures_are_counted_and_left_out():
    rows = [
        row(0, decision="keep"), row(1), row(2, decision="reject", reason="blurred"), row(3, decision="reject"),
        row(4, fault="cut short", width=0, height=0),
    ]  # fmt: skip
    found = report(rows, None, ReportOptions(), Found(faults=[("e.png", "no picture"), ("d/4.png", "cut short")]))
    assert (found.rows, found.kept) == (5, 2)
    assert found.decisions == {"reject": 2, "keep": 1, "undecided": 1}
    assert found.reasons == {"blurred": 1, "no reason given": 1}
    assert found.faults == (("d/4.png", "cut short"), ("e.png", "no picture"))
    assert named(found, "shorter").measured == 2


def test_planted_scores_fill_the_bars_they_should():
    rows = [row(i, scores={"sharpness": 0.1}) for i in range(30)] + [
        row(i, scores={"sharpness": 0.9}) for i in range(10)
    ]
    found = named(report([*rows, row(99)], None, ReportOptions()), "sharpness")
    filled = {round(found.edges[i], 3): n for i, n in enumerate(found.counts) if n}
    assert filled == {0.083: 30, 0.875: 10}
    assert (found.measured, found.missing, found.median, found.low, found.high) == (40, 1, 0.1, 0.1, 0.9)


def test_every_picture_is_in_a_bar_and_the_last_one_holds_what_lies_beyond():
    rows = [row(i, scores={"noise": float(i % 10)}) for i in range(1000)] + [row(2000, scores={"noise": 1e6})]
    found = named(report(rows, None, ReportOptions()), "noise")
    assert sum(found.counts) == 1001 and found.edges[-1] < 20 and found.counts[-1] >= 1


def test_sizes_are_those_after_the_crop():
    rows = [row(0, width=2000, height=1000), row(1, width=4000, height=4000, crop=(10, 10, 1000, 2000))]
    found = report(rows, None, ReportOptions())
    assert named(found, "aspect").low == pytest.approx(-0.9) and named(found, "aspect").told(-1) == "0.5"
    assert named(found, "megapixels").median == 2 and named(found, "shorter").high == 1000


@pytest.mark.parametrize(
    ("red", "green", "blue", "hue"),
    [
        (1, 0, 0, 0),
        (1, 1, 0, 60),
        (0, 1, 0, 120),
        (0, 1, 1, 180),
        (0, 0, 1, 240),
        (1, 0, 1, 300),
        (0.5, 0.5, 0.5, None),
    ],
)
def test_hues_of_mean_colours(red, green, blue, hue):
    scores = {"mean_red": float(red), "mean_green": float(green), "mean_blue": float(blue)}
    found = report([row(0, scores=scores)], None, ReportOptions())
    if hue is None:
        assert named(found, "hue").measured == 0
    else:
        assert named(found, "hue").median == pytest.approx(hue, abs=1e-6)
    assert found.colour == (red, green, blue)


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_buckets_are_those_that_are_chosen_one_by_one(resolution):
    random = np.random.default_rng(resolution)
    rows = [row(i, width=int(w), height=int(h)) for i, (w, h) in enumerate(random.integers(64, 3000, (400, 2)))]
    rows += [
        row(1000 + i, width=w, height=h) for i, (w, h) in enumerate([(512, 512), (1, 5000), (5000, 1), (300, 200)])
    ]
    counted, small = count_buckets(rows, resolution)
    buckets = make_buckets(resolution)
    expected: dict[Bucket, int] = {}
    fewer = 0
    for r in rows:
        own = choose_bucket(r.width, r.height, buckets)
        expected[own] = expected.get(own, 0) + 1
        fewer += r.width < own.width or r.height < own.height
    assert dict(counted) == expected and small == fewer
    assert [n for _, n in counted] == sorted((n for _, n in counted), reverse=True)


def test_copies_count_once_among_the_kept_pictures():
    rows = [row(i) for i in range(10)] + [row(10, decision="reject")]
    groups = (Group("r0", ("r1", "r2", "r3", "r4"), ()), Group("r9", ("r10",), ()), Group("x", ("y",), ()))
    found = report(rows, None, ReportOptions(), Found(groups=groups))
    assert found.duplicates == 4 and found.effective.distinct == 6 and found.effective.groups == 1
    assert found.effective.by_weight == pytest.approx(100 / 30)
    assert report(rows, None, ReportOptions()).duplicates is None


def test_embeddings_follow_their_rows_when_some_are_left_out():
    rows = [row(i, decision="reject" if i % 2 else None) for i in range(40)]
    vectors = np.zeros((40, 41))
    vectors[1::2, 40] = 1  # all that is left out is one clone
    vectors[0::2, :40:2] = np.eye(20)
    found = report(rows, None, ReportOptions(), Found(embeddings=vectors, by="clip"))
    assert found.diversity.vendi == pytest.approx(20, rel=1e-5) and found.measured_on == "clip"
    assert found.diversity.last_tenth == pytest.approx(0.1)
    assert not any("embedding model" in text for text in found.not_measured)


@pytest.mark.parametrize("shape", [(3, 4), (2,), (0, 4)])
def test_embeddings_of_other_pictures_are_refused(shape):
    with pytest.raises(AtelierError, match="2 pictures"):
        report([row(0), row(1)], None, ReportOptions(), Found(embeddings=np.ones(shape)))


def test_without_embeddings_looks_are_measured_and_that_is_said(thumbs):
    found = report(planted(), thumbs, ReportOptions())
    assert found.measured_on == "colours and layout, not on meaning" and found.diversity.pictures == 12
    assert 6 < found.diversity.vendi <= 12
    assert any("measured on colours and layout, not on meaning" in line for line in found.lines())
    sampled = report(planted(), thumbs, ReportOptions(sample=10))
    assert sampled.diversity.pictures == 10


def test_what_was_not_measured_is_always_told(thumbs):
    told = "\n".join(report([row(0), row(1, boxes=())], None, ReportOptions()).not_measured)
    for part in ("neither embeddings nor thumbnails", "2 pictures have no scores", "faces or objects in 1 pictures",
                 "looked for copies", "no captions", "Aesthetics", "nothing was trained"):  # fmt: skip
        assert part in told
    assert "1 thumbnails could not be opened" in "\n".join(report([row(50)], thumbs, ReportOptions()).not_measured)
    whole = Found(embeddings=np.eye(12), groups=())
    rows = [replace(r, boxes=()) for r in planted()]
    told = "\n".join(report(rows, thumbs, ReportOptions(), whole).not_measured)
    assert not any(
        p in told for p in ("No embedding", "faces or objects", "looked for copies", "no captions", "no scores")
    )
    assert "captions are true" in told and "Aesthetics" in told


def test_columns_splits_words_and_authors():
    found = report(
        planted(), None, ReportOptions(trigger="trg", columns="style, genre ,style"), Found(splits={"r0": "test"})
    )
    assert [c.name for c in found.columns] == ["style", "genre"]
    style, genre = found.columns
    assert (style.filled, style.top, style.share) == (12, "Cubism", 0.75) and genre.filled == 0
    assert style.entropy == pytest.approx(0.811, abs=1e-3)
    assert found.splits == {"train": 10, "test": 1, "validation": 1}
    assert found.words.authors == {"joy": 11} and found.words.without == 1
    assert "oil painting" in [s.text for s in found.words.common]
    assert any(line.startswith('"oil painting" is in 100%') for line in found.lines())


@pytest.mark.parametrize(
    ("pictures", "effective", "last", "expected"),
    [
        (1, 1, None, {"steps": 500, "rank": 8, "repeats": 20, "pictures": 20}),
        (20, 20, None, {"steps": 2000, "rank": 16, "repeats": 10, "pictures": 20}),
        (20, 4.0, 0.2, {"steps": 500, "rank": 8, "repeats": 10, "pictures": 20}),
        (30, 30.4, 0.06, {"steps": 3050, "rank": 16, "repeats": 7, "pictures": 45}),
        (200, 150, 0.02, {"steps": 4000, "rank": 32, "repeats": 1, "pictures": 200}),
        (50_000, 50_000, 0.001, {"steps": 4000, "rank": 32, "repeats": 1, "pictures": 50_000}),
    ],
)
def test_advice_by_hand(pictures, effective, last, expected):
    found = advise(Figures(pictures, effective, last))
    assert {s.name: s.value for s in found} == expected
    assert all(s.low <= s.value <= s.high and s.reason.endswith(".") for s in found)


def test_the_rank_is_halved_only_where_meaning_was_measured():
    ranks = [
        {s.name: s.value for s in advise(Figures(200, 200, last, looks))}["rank"]
        for last, looks in ((0.005, True), (0.005, False), (0.02, False), (None, False))
    ]
    assert ranks == [32, 16, 32, 32]


def test_advice_is_bounded_and_never_asks_for_fewer_steps_with_more_pictures():
    assert advise(Figures(0, 0)) == ()
    steps = [advise(Figures(n, n * 0.9, 0.03))[0].value for n in range(1, 200)]
    assert steps == sorted(steps) and (steps[0], steps[-1]) == (500, 4000)


def test_advice_is_for_the_train_split_only():
    rows = [row(i, split="train" if i < 20 else "test") for i in range(60)]
    assert suggested(report(rows, None, ReportOptions()))["repeats"] == 10


def test_an_empty_dataset_has_a_report_a_sheet_and_a_page(tmp_path):
    for rows in ([], [row(0, fault="no picture", width=0, height=0)], [row(0, width=0, height=0)]):
        found = report(rows, tmp_path, ReportOptions())
        assert found.diversity is None and not found.words.words
        assert overview(found).size[0] == 1260 and found.lines()
        assert write_page(found, tmp_path / "page.html").is_file()


class Seen(html.parser.HTMLParser):
    """Tags, attributes and text of a page; every tag that is opened must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.texts = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_holds_everything_and_runs_nothing(thumbs):
    rows = [*planted(), row(20, fault=EVIL, path=EVIL), row(21, decision="reject", reason=EVIL)]
    rows[2] = replace(rows[2], path=EVIL, notes=(EVIL,))
    groups = (Group("r2", ("r4",), ()),)
    found = report(rows, thumbs, ReportOptions(trigger="trg", columns="artist, style"), Found(groups=groups))
    text = page(found, EVIL)
    seen = Seen()
    seen.feed(text)
    assert not seen.open and not seen.tags & {"script", "link", "iframe", "object"}
    assert seen.sources and all(re.match(r"data:image/(png|jpeg);base64,", s) for s in seen.sources)
    assert "http" not in text
    said = " ".join(seen.texts)
    assert said.count(EVIL) >= 5
    for part in (
        "Suggested for training",
        "Not measured",
        "Vendi score",
        "Copies, group 1",
        "Least sharp",
        "Hue",
        "oil painting",
    ):
        assert part in said or part in text
    for line in found.not_measured:
        assert line in said


def test_examples_are_the_pictures_at_the_ends(thumbs):
    found = report(planted(), thumbs, ReportOptions(), Found(groups=(Group("r2", ("r4", "gone"), ()),)))
    shown = {e.title: [path for path, _ in e.pictures] for e in found.examples}
    assert shown["Least sharp"] == [f"d/{n}.png" for n in range(8)]
    assert shown["Copies, group 1"] == ["d/2.png", "d/4.png"]
    assert "Noisiest" not in shown
    assert set(shown["Most unlike the others"]) != set(shown["Most like the others"])


def test_equal_inputs_give_equal_bytes(thumbs, tmp_path):
    vectors = np.random.default_rng(1).normal(size=(12, 5))
    for extra in (Found(), Found(embeddings=vectors)):
        first, second = (report(planted(), thumbs, ReportOptions(), extra) for _ in range(2))
        assert first == second and first.lines() == second.lines()
        assert overview(first).tobytes() == overview(second).tobytes()
        files = [write_page(r, tmp_path / f"{i}.html").read_bytes() for i, r in enumerate((first, second))]
        assert files[0] == files[1]


def test_a_page_is_written_without_thumbnails_that_are_gone(thumbs, tmp_path):
    found = report(planted(), thumbs, ReportOptions())
    thumb_path(thumbs, f"{0:032x}").write_bytes(b"damaged")
    thumb_path(thumbs, f"{1:032x}").unlink()
    assert "(no thumbnail)" in write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")


def test_bars_of_a_histogram_are_as_tall_as_their_counts():
    rows = [row(i, scores={"sharpness": 0.1}) for i in range(30)] + [
        row(i, scores={"sharpness": 0.9}) for i in range(15)
    ]
    picture = np.asarray(histogram(named(report(rows, None, ReportOptions()), "sharpness")))
    blue = (picture == (32, 104, 168)).all(-1).sum(0)
    tall, half = blue[: blue.size // 2].max(), blue[blue.size // 2 :].max()
    assert tall > 100 and half == pytest.approx(tall / 2, abs=1)


def test_plots_take_names_of_any_kind_and_many_of_them():
    values = {EVIL * 5: 1.0, "two\nlines": 0.0, "長い": 3.0} | {f"n{i}": 1.0 for i in range(50)}
    assert bars(values, "a\ntitle").size == bars({}, "").size
    assert {title for title, _ in plots(report(planted(), None, ReportOptions()))} >= {
        "Buckets",
        "Words",
        "Coverage",
        "Hue",
    }


def test_a_report_names_every_measure_and_holds_no_pixels():
    found = report(planted(), None, ReportOptions())
    assert [d.name for d in found.distributions] == list(MEASURES)
    assert not any(isinstance(getattr(found, f.name), np.ndarray) for f in fields(found))
