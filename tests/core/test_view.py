"""Views: filters worked by hand and beside Python, hostile filters, order, and the record for the trainer."""

import itertools
import random

import pytest

from flux_atelier.core.dataset.expression import compile_filter
from flux_atelier.core.dataset.record import Caption, Decision
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption
from flux_atelier.core.dataset.view import Op, View
from flux_atelier.core.errors import AtelierError

FACE, HAND = {"label": "face", "score": 0.9}, {"label": "hand", "score": 0.9}
ROWS = (
    StoredRow("a.png", "1" * 32, width=100, height=50, format="PNG", scores={"sharpness": 0.9}, boxes=(FACE, HAND)),
    StoredRow("b.jpg", "2" * 32, width=50, height=100, format="JPEG", scores={"sharpness": 0.2}, boxes=()),
    StoredRow("c.png", "3" * 32, width=80, height=80, format="PNG", scores={"sharpness": 0.5}, tags=("Watermark", "blue sky"),
              boxes=(FACE, FACE), captions=(WrittenCaption("A Red boat", origin="file"),)),
    StoredRow("d.png", "4" * 32, width=64, height=64, format="PNG", split="validation", notes=("alpha: laid on white",),
              captions=(WrittenCaption("sea", "model", "joy"),)),
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "atelier.db") as opened:
        opened.put(ROWS)
        opened.set_meta("root", "/pictures")
        opened.decide(["2" * 16], "reject", "Curate Dataset", "blurred: sharpness 0.20")
        yield opened


def names(view: View) -> str:
    return "".join(row.path[0] for row in view.rows())


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", "abcd"),
        ("sharpness > 0.4 and faces == 1 and not tag:watermark", "a"),
        ("sharpness > 0.4", "ac"),
        ("not sharpness > 0.4", "b"),
        ("sharpness > 0.4 or width == 64", "acd"),
        ("sharpness>.4 and not (tag:watermark or tag:nothing)", "a"),
        ("0.3 < sharpness < 0.9", "c"),
        ("0.3 < sharpness <= 9e-1", "ac"),
        ("faces == 0", "b"),
        ("faces >= 1", "ac"),
        ("box:hand", "a"),
        ('tag:"blue sky"', "c"),
        ("caption:red", "c"),
        ("captioned", "cd"),
        ("human", "c"),
        ("not captioned", "ab"),
        ("captions = 0", "ab"),
        ("rejected", "b"),
        ("kept and undecided", "acd"),
        ("decision == 'reject'", "b"),
        ("split != 'train'", "d"),
        ("format == 'jpeg'", "b"),
        ("note:alpha", "d"),
        ("aspect > 1", "a"),
        ("shorter >= 64 AND longer < 81", "cd"),
        ("megapixels < 0.0049", "d"),
        ("path:.JPG", "b"),
        ("width > height and width > -1", "a"),
        ("'train' == split", "abc"),
    ],
)
def test_filters_select_what_they_say(store, expression, expected):
    assert names(View.of(store, expression)) == expected
    assert names(View.of(store).filter(expression)) == expected


@pytest.mark.parametrize(
    "expression",
    ["sharpness >", "> 1", "(width > 1", "width > 1)", "width 1", "not", "1", "'text'", "and", "width > 1 and", "a; b",
     "width > 1; DROP TABLE rows", "__import__('os').system('x')", "width == (1)", "tag:", "()", "width > 1 --", "#"],
)  # fmt: skip
def test_what_is_no_filter_is_refused_in_words(store, expression):
    with pytest.raises(AtelierError, match=r"[Ff]ilter") as error:
        View.of(store, expression)
    assert str(error.value).count(". ") <= 1
    assert len(store.ids()) == 4


@pytest.mark.parametrize("text", ["x') OR 1 --", "'", '"', "%", "_", "x\\", "$.a", "?", "\0"])
def test_words_are_values_never_sql(text):
    quoted = f'"{text}"' if '"' not in text else f"'{text}'"
    condition = compile_filter(f"tag:{quoted} and path == {quoted}")
    assert condition.values == (text, text)
    assert condition.sql.count("?") == 2


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(AtelierError, match=r"sharpnes, which is not known. Did you mean sharpness"):
        compile_filter("sharpnes > 1", ["sharpness"])
    with pytest.raises(AtelierError, match="Texts stand in quotes"):
        compile_filter("split == train", [])
    with pytest.raises(AtelierError, match=r"tags:, which is not known. Use tag:"):
        compile_filter("tags:x")


@pytest.mark.parametrize(
    "expression", ["not " * 100 + "kept", "(" * 100 + "kept" + ")" * 100, "kept or " * 400 + "kept"]
)
def test_monstrous_filters_end_in_words(store, expression):
    with pytest.raises(AtelierError, match=r"nests deeper|characters"):
        View.of(store, expression)


def test_random_filters_agree_with_python(tmp_path):
    rng = random.Random(0)
    rows = [
        StoredRow(f"{i:03d}.png", f"{i:032x}"[::-1], width=rng.randint(1, 9), height=rng.randint(1, 9),
                  scores={"blur": rng.choice((0.25, 0.5, 0.75))})
        for i in range(120)
    ]  # fmt: skip
    terms = [f"{n} {o} {v}" for n, o, v in itertools.product(("width", "height", "blur"), ("<", "==", ">="), (0.5, 4))]

    def grown(depth: int) -> str:
        if not depth:
            return rng.choice(terms)
        kind = rng.choice(("and", "or", "not", "()"))
        if kind == "not":
            return f"not {grown(depth - 1)}"
        return f"({grown(depth - 1)})" if kind == "()" else f"{grown(depth - 1)} {kind} {grown(depth - 1)}"

    sizes = set()
    with Store(tmp_path / "s.db") as store:
        store.put(rows)
        for _ in range(200):
            expression = grown(rng.randint(1, 4))
            wanted = [
                r.path
                for r in rows
                if eval(expression, {"width": r.width, "height": r.height, "blur": r.scores["blur"]})
            ]
            assert [r.path for r in View.of(store, expression).rows()] == wanted, expression
            sizes.add(len(wanted))
    assert len(sizes) > 20


def test_order_and_parts_of_a_view(store):
    view = View.of(store)
    assert names(view.sort("-sharpness")) == "acbd"  # the one without a score comes last, also when falling
    assert names(view.sort("sharpness")) == "bcad"
    assert names(view.sort("-width").filter("sharpness > 0.3")) == "ac"
    assert names(View.of(store, "kept", "-width")) == "acd"
    assert [r.path for r in view.rows(1, 3)] == ["b.jpg", "c.png"]
    assert names(view.only(reversed(view.ids))) == "dcba"
    with pytest.raises(AtelierError, match="no row zzz"):
        view.only(["zzz"])
    with pytest.raises(AtelierError, match="Use sharpness"):
        view.sort("sharpnes")


def test_a_view_is_a_value_that_knows_whether_it_is_current(store):
    view = View.of(store)
    assert view == View.of(store) and hash(view) == hash(View.of(store))
    assert view.current and view.fingerprint == View.of(store).fingerprint
    flipped = view.then(Op("flip"))
    assert view.ops == () and flipped.ops == (Op("flip"),)
    assert len({view.fingerprint, flipped.fingerprint, view.only(view.ids[:2]).fingerprint}) == 3
    store.decide(view.ids[:1], "reject", "human")
    store.leave(["d.png"])
    assert not view.current and len(view) == 4
    assert len(view.renewed()) == 3 and view.renewed().current
    assert view.renewed().fingerprint != view.fingerprint


def test_chains_of_steps_keep_rows_and_captions_together(store):
    rng = random.Random(1)
    truth = {r.id: (r.path, r.captions) for r in View.of(store).rows()}
    for _ in range(20):
        view = View.of(store)
        for _ in range(20):
            step = rng.choice(("filter", "sort", "only"))
            if step == "filter":
                view = view.filter(rng.choice(("width > 40", "kept or rejected", "captions < 3")))
            elif step == "sort":
                view = view.sort(rng.choice(("-width", "path", "sharpness")))
            else:
                view = view.only(rng.sample(view.ids, len(view)))
        assert {r.id: (r.path, r.captions) for r in view.rows()} == truth
        assert [r.id for r in view.rows()] == list(view.ids)


def test_a_view_becomes_the_record_of_the_trainer(store):
    store.edit({"1" * 16: {"split": "test"}}, "human")
    dataset = View.of(store).dataset()
    assert dataset.root == "/pictures"
    assert [r.path for r in dataset.rows] == ["b.jpg", "c.png", "d.png"]
    assert dataset.rows[0].rejected == Decision("blurred: sharpness 0.20", "Curate Dataset")
    assert dataset.rows[1].captions == (Caption("A Red boat", "human"),)
    assert dataset.rows[2].captions == (Caption("sea", "joy"),)
    assert dataset.rows[2].split == "validation"
    assert dataset.summary() == "2 of 3 pictures kept, 1 blurred"
    assert (dataset.rows[1].width, dataset.rows[1].digest) == (80, "3" * 32)


def test_crops_and_operations_come_with_the_record(store):
    store.edit({"1" * 16: {"crop": (0, 0, 40, 30)}}, "human")
    view = View.of(store, "", "path").then(Op("rotate", (("turns", 1),)))
    first = view.dataset().rows[0]
    assert first.crop == (0, 0, 40, 30) and first.ops == ({"name": "rotate", "turns": 1},)
    assert (first.width, first.height) == (30, 40)
    assert first.content != first.digest


# --- what nodes lay on a view ---

A, B, C, D = (sign * 16 for sign in "1234")


def test_laid_values_stand_before_stored_ones_everywhere_but_in_the_store(store):
    view = View.of(store)
    laid = view.lay({A: {"split": "test", "tags": ("Sea",), "repeats": 3}, B: {"boxes": (FACE,)}})
    assert [row.split for row in laid.rows()] == ["test", "train", "train", "validation"]
    assert names(laid.filter("split == 'test'")) == "a"
    assert names(laid.filter("split == 'train'")) == "bc"
    assert names(laid.filter("tag:sea and repeats == 3")) == "a"
    assert names(laid.filter("faces == 1")) == "ab"
    assert names(laid.sort("-repeats").only(laid.sort("-repeats").ids[:1])) == "a"
    assert [r.id for r in laid.dataset().rows] == [B, C, D]
    assert names(view.filter("split == 'test'")) == "" and store.rows([A])[0].split == "train"
    assert laid.fingerprint != view.fingerprint
    again = laid.lay({A: {"split": "train"}})
    assert again.rows()[0].split == "train" and again.rows()[0].tags == ("Sea",)
    assert laid.rows()[0].split == "test"


def test_laid_captions_are_seen_by_filters_and_the_record(store):
    view = View.of(store).lay({A: {"captions": (WrittenCaption("a green hill", "model", "template"),)}})
    assert names(view.filter("captioned")) == "acd"
    assert names(view.filter("caption:green")) == "a" and names(view.filter("caption:boat")) == "c"
    assert names(view.filter("human")) == "c"
    assert view.dataset().rows[0].captions == (Caption("a green hill", "template"),)
    replaced = view.lay({D: {"captions": (WrittenCaption("hill", "model", "template"),)}})
    assert names(replaced.filter("caption:sea")) == ""


def test_what_is_left_out_keeps_its_reason(store):
    view = View.of(store).without({A: "blurred"}, "Curate Dataset")
    assert names(view) == "bcd" and [(o.id, o.reason, o.by) for o in view.left_out] == [
        (A, "blurred", "Curate Dataset")
    ]
    rows = {row.id: row for row in view.dataset().rows}
    assert rows[A].rejected == Decision("blurred", "Curate Dataset") and rows[C].rejected is None
    assert view.without({A: "again"}, "x") == view


def test_variants_stand_after_their_rows_and_follow_them(store):
    flip = {"ops": ({"name": "flip", "axis": "horizontal"},)}
    view = View.of(store).lay({A: {"split": "validation"}}).with_variants({A: [flip, {}], C: [flip]})
    assert view.ids == (A, A + "+1", A + "+2", B, C, C + "+1", D)
    rows = view.rows()
    assert rows[1].ops == flip["ops"] and rows[1].parent == A and rows[1].split == "validation"
    assert rows[5].captions == rows[4].captions
    assert names(view.filter("split == 'validation'")) == "aaad"
    assert names(view.without({C: "no"}, "x")) == "aaabd"
    assert names(view.without({C + "+1": "no"}, "x")) == "aaabcd"
    assert names(view.sort("-path")) == "dccbaaa"
    record = view.dataset()  # variants of A are not validated with
    assert [row.id for row in record.rows] == [A, B, C, C + "+1", D]
    assert len({row.content for row in record.rows}) == 5
    assert view.with_variants({A: [flip]}).ids[1] == A + "+3"


def test_a_mirrored_variant_says_right_for_left_whenever_its_row_was_captioned(store):
    flip = {"ops": ({"name": "flip", "axis": "horizontal"},), "mirrored": True}
    view = View.of(store).with_variants({A: [flip, {"ops": ()}]})
    later = view.lay({A: {"captions": (WrittenCaption("on the left", "model", "joy"),), "tags": ("left hand",)}})
    assert [row.captions[0].text for row in later.rows(0, 3)] == ["on the left", "on the right", "on the left"]
    assert later.rows(1, 2)[0].tags == ("right hand",)
    store.caption({A: [WrittenCaption("my left")]}, "human")
    assert [row.captions[0].text for row in view.rows(0, 3)] == ["my left", "my right", "my left"]


def test_captions_of_the_preferred_model_count_and_a_persons_before_all(store):
    store.caption({D: [WrittenCaption("one", "model", "joy"), WrittenCaption("two", "model", "wd")]}, "x")
    store.caption({C: [WrittenCaption("a boat", "model", "joy")]}, "x")
    view = View.of(store)

    def said(view):
        return [[c.text for c in row.captions] for row in view.dataset().rows][2:]

    assert said(view) == [["A Red boat"], ["two"]]
    assert said(view.preferring("joy")) == [["A Red boat"], ["one"]]
    assert said(view.preferring("joy").preferring("wd")) == [["A Red boat"], ["two"]]
    assert said(view.preferring("nobody")) == [["A Red boat"], ["two"]]


def test_values_that_cannot_be_laid_are_refused(store):
    with pytest.raises(AtelierError, match="no path"):
        View.of(store).lay({A: {"path": "x"}})
    with pytest.raises(AtelierError, match="no row zzz"):
        View.of(store).lay({"zzz": {"split": "test"}})


def test_a_view_of_a_store_that_is_gone_says_so(store, tmp_path):
    view = View(tmp_path / "absent.db", 1, ("1" * 16,))
    with pytest.raises(AtelierError, match="There is no dataset store"):
        view.rows()
