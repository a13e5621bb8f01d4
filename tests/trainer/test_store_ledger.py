"""Captions in a store: one commit a batch, other authors passed along, a person's untouched, kills; fusing, describing,
linting and editing over views."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_captioners
import torch
from PIL import Image

from flux_atelier.core.dataset.opening import open_dataset
from flux_atelier.core.dataset.scan import finish
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import WrittenCaption
from flux_atelier.core.dataset.view import Op
from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.captioners.describing import axes_of, describe, distribution, tagged
from flux_atelier.trainer.captioners.fusing import fuse_view, read_synonyms, read_weights, score_of, support_table
from flux_atelier.trainer.captioners.interrogator import Likeness, Verdict
from flux_atelier.trainer.captioners.job import Tally, caption_items, open_item
from flux_atelier.trainer.captioners.ledger import Made
from flux_atelier.trainer.captioners.opening import WhenAsked, endpoint_captioner, vision_captioner
from flux_atelier.trainer.captioners.options import (
    AskOptions,
    EditOptions,
    EndpointOptions,
    FuseOptions,
    LintOptions,
    StyleOptions,
    VisionOptions,
)
from flux_atelier.trainer.captioners.rewriting import (
    counting,
    edit_lines,
    edit_view,
    keep_edit,
    lint_lines,
    lint_view,
    rewritten,
    texts_of,
)
from flux_atelier.trainer.captioners.store_ledger import StoreLedger, captioned, items_of

ROOT = Path(__file__).resolve().parents[2]


class Echo:
    """Answers with the picture's size; remembers each batch."""

    prompt = "what is it"

    def __init__(self, name: str = "echo", **settings):
        self.name, self.settings, self.batches = name, settings, []

    def caption(self, pictures, asks):
        self.batches.append(len(pictures))
        return [f"{p.width} x {p.height} {ask.turns[-1]}".strip() for p, ask in zip(pictures, asks, strict=True)]


def drawn(folder: Path, count: int = 6) -> Path:
    """Pictures 20 to 20 + count wide and 10 high, the second with a caption of a person beside it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (10, 20 + i, 3), dtype=np.uint8)).save(folder / f"p{i}.png")
    (folder / "p1.txt").write_text("a person wrote this")
    return folder


def open_view(folder: Path, place: Path):
    steps = open_dataset(folder, place, measured=False)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def view(tmp_path):
    return open_view(drawn(tmp_path / "dogs"), tmp_path / "data")


def run(view, captioner, **options) -> Tally:
    tally = Tally()
    with Store(view.store, made=False) as store:
        for step in caption_items(items_of(view), captioner, AskOptions(**options), StoreLedger(store)):
            tally.add(step)
    return tally


def put(view, captions: dict[str, dict[str, str]]) -> None:
    """Models' captions by the picture's path."""
    with Store(view.store, made=False) as store:
        ids = {row.path: row.id for row in view.rows()}
        store.caption(
            {ids[p]: [WrittenCaption(t, "model", m) for m, t in named.items()] for p, named in captions.items()}, by="m"
        )


def by_path(view) -> dict[str, dict[str, str]]:
    return {row.path: {c.model or c.author: c.text for c in row.captions} for row in view.rows()}


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_a_job_by_hand(view):
    echo = Echo()
    tally = run(view, echo, batch_size=2)
    assert (tally.made, tally.locked, tally.known, echo.batches) == (5, 1, 0, [2, 2, 1])
    written = by_path(view)
    assert written["p0.png"] == {"echo": "20 x 10 what is it"}
    assert written["p1.png"] == {"human": "a person wrote this"}
    kept = view.rows(2, 3)[0].captions[0]
    assert (kept.author, kept.model, kept.origin, len(kept.prompt), kept.seed) == ("model", "echo", "store", 32, 0)
    seen = captioned(view, "echo")
    assert seen.current
    assert [c.text for c in seen.dataset().rows[2].captions] == ["22 x 10 what is it"]
    told = tally.lines("echo", {row.id: row.path for row in view.rows()})
    assert told[0] == "5 captions by echo, 1 left alone, a person captioned them"
    assert told[1] == "p0.png: 20 x 10 what is it"


def test_a_second_run_asks_nothing_and_loads_no_model(view):
    run(view, Echo())

    def never():
        raise AssertionError("the model was opened")

    again = run(view, WhenAsked("echo", "what is it", {}, never))
    assert (again.made, again.known, again.locked) == (0, 5, 1)
    revision = view.renewed().revision
    run(view, WhenAsked("echo", "what is it", {}, never))
    assert view.renewed().revision == revision


def test_one_commit_a_batch_that_is_in_no_persons_way(view):
    with Store(view.store, made=False) as store:
        revisions = []
        for _ in caption_items(items_of(view), Echo(), AskOptions(batch_size=2), StoreLedger(store)):
            revisions.append(store.revision)
        assert np.diff(revisions).tolist() == [1, 1]
        assert store.undo() is None
        assert store.edited == 0


def test_other_models_captions_stay_and_a_models_own_is_replaced(view):
    run(view, Echo("one"))
    run(view, Echo("two"), prompt="second")
    run(view, Echo("one"), prompt="third")
    assert by_path(view)["p3.png"] == {"two": "23 x 10 second", "one": "23 x 10 third"}
    row = view.rows(3, 4)[0]
    assert len(row.captions) == 2


def test_what_a_person_writes_meanwhile_is_left_alone(view):
    first = view.ids[0]

    class Slow(Echo):
        def caption(self, pictures, asks):
            with Store(view.store, made=False) as store:
                store.caption({first: [WrittenCaption("typed")]}, by="human")
            return super().caption(pictures, asks)

    tally = run(view, Slow())
    assert (tally.made, tally.locked) == (4, 2)
    assert by_path(view)["p0.png"] == {"human": "typed"}
    with Store(view.store, made=False) as store:  # and even where it is written between the look and the commit
        StoreLedger(store).commit([Made(first, "by a model", "echo", "h")])
    assert by_path(view)["p0.png"] == {"human": "typed", "echo": "by a model"}
    assert [c.text for c in captioned(view, "echo").dataset().rows[0].captions] == ["typed"]


KILLED = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("flux_atelier", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
package = importlib.util.module_from_spec(spec); sys.modules["flux_atelier"] = package; spec.loader.exec_module(package)
from pathlib import Path
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.view import View
from flux_atelier.trainer.captioners.job import caption_items
from flux_atelier.trainer.captioners.options import AskOptions
from flux_atelier.trainer.captioners.store_ledger import StoreLedger, items_of
class Slow:
    name, prompt, settings = "echo", "what is it", {{}}
    def caption(self, pictures, asks):
        with open({log!r}, "a") as opened: opened.writelines(f"{{p.width}}\\n" for p in pictures)
        time.sleep(0.05)
        return [f"{{p.width}} x {{p.height}} what is it" for p in pictures]
with Store(Path({store!r})) as store:
    for step in caption_items(items_of(View.of(store)), Slow(), AskOptions(batch_size=4), StoreLedger(store)):
        print(step.done, flush=True)
"""


def test_a_killed_job_loses_at_most_the_batch_under_way(tmp_path):
    view = open_view(drawn(tmp_path / "dogs", 160), tmp_path / "data")
    log = tmp_path / "asked.txt"
    code = KILLED.format(root=str(ROOT), log=str(log), store=str(view.store))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as job:
        told = 0
        while told < 21:
            told = int(job.stdout.readline())
        os.kill(job.pid, signal.SIGKILL)
    kept = sum("echo" in named for named in by_path(view).values())
    asked = len(log.read_text().splitlines())
    assert told - 1 <= kept  # the person's row is done without a caption
    assert 0 <= asked - kept <= 4
    assert kept < 159
    rest = Echo()
    tally = run(view, rest, batch_size=4)
    assert (sum(rest.batches), tally.known) == (159 - kept, kept)
    assert {len(named) for named in by_path(view).values()} == {1}


# --- items -----------------------------------------------------------------------------------------------------------


def test_crops_and_operations_are_seen(view):
    first, second = view.ids[0], view.ids[2]
    seen = view.lay({first: {"crop": [2, 3, 5, 4]}, second: {"ops": [{"name": "rotate", "turns": 1}]}})
    run(seen, Echo(), prompt="plain")
    assert by_path(view)["p0.png"] == {"echo": "5 x 4 plain"}
    assert by_path(view)["p2.png"] == {"echo": "10 x 22 plain"}
    item = items_of(seen)[0]
    whole = np.asarray(Image.open(item.file))
    assert np.array_equal(np.asarray(open_item(item)), whole[3:7, 2:7])
    flipped = items_of(seen.then(Op("flip")))[0]
    assert np.array_equal(np.asarray(open_item(flipped)), whole[3:7, 2:7][:, ::-1])
    again = Echo()
    assert run(view, again, prompt="plain").known == 3  # those that look otherwise now are asked again
    assert sum(again.batches) == 2


def test_variants_share_the_caption_of_their_row(view):
    first = view.ids[0]
    varied = view.with_variants({first: [{"ops": [{"name": "flip"}]}] * 2})
    assert len(varied) == 8
    assert [item.id for item in items_of(varied)] == list(view.ids)
    assert items_of(varied.only([f"{first}+1"]))[0].id == first
    run(varied, Echo())
    rows = captioned(varied, "echo").dataset().rows
    assert [rows[i].captions[0].text for i in range(3)] == ["20 x 10 what is it"] * 3


def test_what_is_known_about_a_row(view):
    run(view, Echo("wd"), prompt="tagged")
    laid = view.lay({view.ids[0]: {"tags": ("dog", "style:Ukiyo-e")}})
    with Store(view.store, made=False) as store:
        store.decide([view.ids[5]], "reject", "human")
    items = items_of(laid)
    assert len(items) == 5
    assert (items[0].tags, items[0].style, items[0].captions) == (
        "dog, style:Ukiyo-e",
        "Ukiyo-e",
        {"wd": "20 x 10 tagged"},
    )
    tally = run(laid.only(laid.ids[:1]), Echo(), prompt="{folder} {name} {style} {caption:wd}")
    assert tally.examples[0].text == "20 x 10 dogs p0 Ukiyo-e 20 x 10 tagged"


def test_a_models_caption_is_seen_beside_laid_ones(view):
    template = WrittenCaption("from a template", "model", "template")
    laid = view.lay({view.ids[0]: {"captions": (template,)}}).preferring("template")
    run(laid, Echo())
    seen = captioned(laid, "echo")
    assert [c.text for c in seen.dataset().rows[0].captions] == ["20 x 10 what is it"]
    assert [c.model for c in seen.rows(0, 1)[0].captions] == ["template", "echo"]


# --- captioners opened when asked ------------------------------------------------------------------------------------


def test_a_model_in_a_folder_over_a_view(view, tmp_path):
    tiny_captioners.llava(tmp_path / "tiny")
    devices = []

    def device():
        devices.append("made")
        return torch.device("cpu")

    options = VisionOptions(max_tokens=4)
    captioner = vision_captioner(tmp_path / "tiny", options, device)
    assert (captioner.name, captioner.prompt, devices) == ("tiny", "Describe this image in detail.", [])
    assert run(view, captioner).made == 5
    assert (devices, captioner.notes) == (["made"], [])
    again = vision_captioner(tmp_path / "tiny", options, device)
    assert (run(view, again).known, devices) == (5, ["made"])
    captioner.opened.limit = 2
    assert "2 pictures at once" in captioner.notes[0]
    named = vision_captioner(tmp_path / "tiny", options, device, "short")
    assert (named.name, named.settings) == ("short", options.settings | {"model": "tiny"})


def test_own_names_do_not_hide_another_model():
    settings = [endpoint_captioner(EndpointOptions(model=model), "mine").settings for model in ("a", "b")]
    assert settings[0] != settings[1]
    assert endpoint_captioner(EndpointOptions(model="a"), "a").settings == EndpointOptions().settings


# --- fusing ----------------------------------------------------------------------------------------------------------

SAID = {
    "p0.png": {"joy": "a red fox in snow, a boat", "wd": "fox, snow, tree", "qwen": "a red fox, tree"},
    "p2.png": {"joy": "a boat", "wd": "tree"},
}


def fused(view, **options):
    likeness = options.pop("likeness", None)
    with Store(view.store, made=False) as store:
        return list(fuse_view(view, FuseOptions(**options), "fused", StoreLedger(store), likeness))[-1]


def test_fusion_by_hand(view):
    put(view, SAID)
    found = fused(view, prefix="sks", synonym_rules="wolf = fox")
    assert (found.done, found.total, found.locked) == (6, 6, 1)
    assert sorted(found.bare) == ["p2.png", "p3.png", "p4.png", "p5.png"]
    ((name, fusion),) = found.made
    assert name == "p0.png"
    kept = {c.key for c in fusion.claims if c.fate == "kept"}
    assert kept == {"red fox", "snow", "tree"}
    support = {c.key: c.support for c in fusion.claims}
    assert (support["fox"], support["red fox"], support["snow"], support["boat"]) == (3, 2, 2, 1)
    row = view.rows(0, 1)[0].captions
    assert [c.model for c in row] == ["joy", "wd", "qwen", "fused"]
    assert row[-1].text == fusion.text
    assert row[-1].text.startswith("sks, ")
    assert row[-1].score == pytest.approx(2 / 3)
    table = support_table(name, fusion)
    assert "boat  (joy)" in table
    assert "unsupported" in table
    revision = view.renewed().revision
    fused(view, prefix="sks", synonym_rules="wolf = fox")
    assert view.renewed().revision == revision  # nothing new, nothing written
    fused(view, prefix="sks", threshold=1)
    assert by_path(view)["p2.png"]["fused"].startswith("sks, ")


def test_weights_decide(view):
    put(view, SAID)
    alone = fused(view, weight_rules="joy: 2\nwd: 0.5; qwen: 0")
    assert {name for name, _ in alone.made} == {"p0.png", "p2.png"}
    assert by_path(view)["p2.png"]["fused"] == "boat"
    fused(view.only(view.ids[2:3]), weight_rules="qwen: 0")  # speaks of another picture alone
    with pytest.raises(AtelierError, match=r"joi has no caption .* joy, qwen, wd"):
        fused(view, weight_rules="joi: 1")


def test_score_of_no_claim_is_zero():
    from flux_atelier.core.dataset.claims import FusionPlan, Statement, fuse

    statements = [Statement("a", "fox"), Statement("b", "fox, boat")]
    assert score_of(fuse(statements, FusionPlan(threshold=1)), statements) == pytest.approx(3 / 4)
    assert score_of(fuse(statements, FusionPlan(threshold=9)), statements) == 0
    assert score_of(fuse([], FusionPlan()), []) == 0


@pytest.mark.parametrize("text", ["joy", "joy: x", ": 1", "joy: -1", "joy: nan", "joy: inf"])
def test_weights_that_are_none(text):
    with pytest.raises(AtelierError, match="not understood"):
        read_weights(text)


def test_rules_are_read():
    assert read_weights(" a:b : 1.5 \n\nc: 0") == {"a:b": 1.5, "c": 0.0}
    assert read_synonyms("puppy = dog; kitten=cat") == {"puppy": "dog", "kitten": "cat"}
    with pytest.raises(AtelierError, match="puppy = dog"):
        read_synonyms("puppy")


# --- style -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip-tiny"
    tiny_captioners.siglip(folder)
    return folder


@pytest.fixture
def vocabulary(tmp_path):
    axes = {
        "style": {"templates": ["{}"], "entries": {"Calm": ["calm"], "Wild": ["wild"]}},
        "medium": {"templates": ["a {}"], "entries": {"Oil": ["oil"], "Ink": ["ink"]}},
    }
    (tmp_path / "own.json").write_text(json.dumps(axes))
    return str(tmp_path / "own.json")


def described(view, clip, **options):
    found = {}
    with Store(view.store, made=False) as store:
        steps = describe(view, clip, StyleOptions(**options), lambda: torch.device("cpu"), StoreLedger(store))
        for step in steps:
            found |= step.found
    return found


def test_styles_become_tags_and_captions(view, clip, vocabulary):
    found = described(view, clip, vocabulary=vocabulary, captions=True, batch_size=4, temperature=1e-3)
    assert set(found) == set(view.ids)
    seen = tagged(view.lay({view.ids[0]: {"tags": ("dog", "Style:Old")}}), found)
    rows = {row.path: row for row in seen.rows()}
    style, medium = (found[view.ids[0]][axis].name for axis in ("style", "medium"))
    assert style in ("Calm", "Wild")
    assert rows["p0.png"].tags == ("dog", f"style:{style}", f"medium:{medium}")
    assert by_path(view)["p0.png"] == {"clip-tiny": f"{style}, {medium}"}
    assert by_path(view)["p1.png"] == {"human": "a person wrote this"}
    assert seen.filter(f'tag:"style:{style}"').ids
    assert items_of(seen)[0].style == style


def test_where_nothing_stands_out_nothing_is_said(view, clip, vocabulary):
    found = described(view, clip, vocabulary=vocabulary, captions=True, temperature=100.0, threshold=0.9, axes="style")
    assert {v.name for verdicts in found.values() for v in verdicts.values()} == {""}
    assert [row.tags for row in tagged(view, found).rows()] == [()] * 6
    assert by_path(view)["p0.png"] == {}
    assert distribution(found) == ["style: nothing stands out in 6"]
    with pytest.raises(AtelierError, match="no axis mood"):
        axes_of(StyleOptions(vocabulary=vocabulary, axes="mood"))


def test_distribution_by_hand():
    a, b, none = Verdict("A", "A", 0.9), Verdict("B", "B", 0.8), Verdict("", "B", 0.4)
    found = {"1": {"style": a}, "2": {"style": b}, "3": {"style": b}, "4": {"style": none}}
    assert distribution(found) == ["style: B 2, A 1, nothing stands out in 1"]


def test_claims_are_ranked_by_likeness_to_the_picture(view, clip):
    likeness = Likeness(clip, torch.device("cpu"))
    score = likeness.to(open_item(items_of(view)[0]))
    assert score("fox") == score("fox")
    assert -1 <= score("fox") <= 1
    put(view, {"p0.png": dict.fromkeys("ab", "fox, snow, tree, boat, sea, moon, hat, cup")})
    fused(view, likeness=likeness, pull=100)
    texts = by_path(view)["p0.png"]["fused"].split(", ")
    assert texts == sorted(texts, key=lambda t: -score(t))
    assert texts != ["fox", "snow", "tree", "boat", "sea", "moon", "hat", "cup"]


# --- lint and edits --------------------------------------------------------------------------------------------------

FAULTY = {
    "p0.png": {"joy": "sks, an oil painting of a dog on a road"},
    "p2.png": {"joy": "an oil painting of a cat"},
    "p3.png": {"joy": "sks, an oil painting of the sea. " + "It has waves. " * 8},
    "p4.png": {"joy": "I'm sorry, I can't describe this."},
    "p5.png": {"joy": "sks, an oil painting of a boat"},
}
BUDGET = 18


def linted(view, **options):
    return lint_view(view, LintOptions(trigger="sks", budget=BUDGET, **options))


def test_lint_finds_shows_and_changes_nothing(view):
    put(view, FAULTY)
    before = view.renewed().revision
    found = linted(view)
    assert found.counts == {"refusal": 1, "trigger": 2, "leak": 1, "overflow": 1}
    assert found.human == 1  # the person's caption lacks the trigger
    said = lint_lines(found)
    assert said[0] == "6 captions: 1 refusal, 2 trigger, 1 leak, 1 overflow"
    assert any(line.startswith("leak: p0.png, p2.png, p3.png and 1 more: ") for line in said)
    shown = "\n".join(edit_lines(found.edit, False, found.human))
    assert "-sks, an oil painting of a boat" in shown
    assert "1 of a person left as they are" in shown
    assert view.renewed().revision == before


def test_mends_are_kept_and_taken_back_by_one_undo(view):
    put(view, FAULTY)
    before = by_path(view)
    found = linted(view)
    after = rewritten(view, found.edit, "Lint Captions", found.anew)
    texts = {name: one.caption.text for name, one in counting(after).items()}
    assert texts["p2.png"] == "sks, a cat"
    assert texts["p1.png"] == "a person wrote this"
    assert "oil painting" not in " ".join(texts.values())
    assert linted(after).counts == {"trigger": 1}  # the person's
    again = linted(after)
    assert again.edit.after == {}
    assert after.current
    with Store(view.store, made=False) as store:
        store.undo()
    assert by_path(view) == before


def test_a_refusal_is_captioned_anew(view):
    run(view, Echo("joy"))
    ids = {row.path: row.id for row in view.rows()}
    with Store(view.store, made=False) as store:
        rows = store.rows([ids["p4.png"]])
        store.caption({ids["p4.png"]: [replace(rows[0].captions[0], text="I'm sorry, I can't help.")]}, by="m")
    found = lint_view(view, LintOptions())
    assert found.anew == {"p4.png"}
    rewritten(view, found.edit, "Lint Captions", found.anew)
    assert by_path(view)["p4.png"] == {}  # nothing was left of it
    tally = run(view, Echo("joy"))
    assert (tally.made, tally.known) == (1, 4)


def test_a_persons_captions_are_mended_only_if_asked(view):
    put(view, FAULTY)
    found = linted(view, human=True)
    assert found.human == 0
    rewritten(view, found.edit, "Lint Captions", found.anew)
    row = view.rows(1, 2)[0]
    assert [(c.text, c.author) for c in row.captions] == [("sks, a person wrote this", "human")]


def test_fixes_are_chosen(view):
    put(view, FAULTY)
    found = linted(view, fix_leaks=False, fix_refusals=False, fix_overflow=False)
    assert found.edit.after == {"p2.png": "sks, an oil painting of a cat"}  # a refusal gets no trigger


def test_a_caption_changed_meanwhile_is_not_overwritten(view):
    put(view, FAULTY)
    found = linted(view)
    put(view, {"p2.png": {"joy": "another"}})
    before = by_path(view)
    with pytest.raises(AtelierError, match=r"p2.png was changed since"):
        rewritten(view, found.edit, "Lint Captions")
    assert by_path(view) == before


def test_edits_by_hand(view):
    put(view, {"p0.png": {"joy": "dog, a dog, Dog, road", "wd": "other"}, "p2.png": {"joy": "cat, sky"}})
    seen = view.preferring("joy")
    options = EditOptions(find="dog", replacement="fox", whole_words=True, prefix="sks", dedupe=True, order="road, sky")
    found = edit_view(seen, options)
    assert found.edit.after == {"p0.png": "sks, road, fox, a fox, Dog", "p2.png": "sks, sky, cat"}
    assert found.human == 1
    keep_edit(seen, found, options, "Edit Captions")
    assert by_path(view)["p0.png"] == {"joy": "sks, road, fox, a fox, Dog", "wd": "other"}


def test_a_queue_that_runs_again_does_not_edit_again(view):
    put(view, {"p0.png": {"joy": "cat"}, "p2.png": {"joy": "a cat"}})
    options = EditOptions(find="cat", replacement="black cat")
    view = keep_edit(view, edit_view(view, options), options, "Edit Captions")
    again = edit_view(view, options)
    assert (again.edit.after, again.done) == ({}, 2)
    assert by_path(view)["p0.png"] == {"joy": "black cat"}
    put(view, {"p0.png": {"joy": "cat and dog"}})  # somebody changed it since
    assert edit_view(view, options).edit.after == {"p0.png": "black cat and dog"}
    with Store(view.store, made=False) as store:
        store.undo()
        store.undo()
    assert by_path(view)["p2.png"] == {"joy": "a cat"}
    assert set(edit_view(view, options).edit.after) == {"p0.png", "p2.png"}


def test_a_shuffle_follows_its_seed(view):
    tags = ", ".join("abcdefgh")
    put(view, {"p0.png": {"joy": tags}, "p2.png": {"joy": tags}})
    first, again, other = (edit_view(view, EditOptions(shuffle=True, seed=s)).edit.after for s in (0, 0, 1))
    assert first == again != other
    assert first["p0.png"] != first["p2.png"]
    assert {text.split(", ")[0] for text in first.values()} == {"a"}
    assert sorted(first["p0.png"].split(", ")) == list("abcdefgh")


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "nothing to do"), ({"find": "(", "regex": True}, "failed"), ({"replacement": "x"}, "nothing to do")],
)
def test_edits_that_cannot_be_done_are_told(view, options, told):
    with pytest.raises(AtelierError, match=told):
        edit_view(view, EditOptions(**options))


def test_laid_captions_are_edited_where_they_lie(view):
    laid = view.lay({view.ids[0]: {"captions": (WrittenCaption("a cat", "model", "template"),)}})
    options = EditOptions(suffix="end")
    before = by_path(view)
    seen = keep_edit(laid, edit_view(laid, options), options, "Edit Captions")
    assert texts_of(counting(seen))["p0.png"] == "a cat, end"
    assert by_path(view) == before


def test_only_captions_that_count_are_edited(view):
    put(view, {"p0.png": {"joy": "one", "wd": "two"}})
    assert texts_of(counting(view))["p0.png"] == "two"  # the last that was made
    assert texts_of(counting(view.preferring("joy")))["p0.png"] == "one"
    for seen in (view, view.preferring("joy"), view.preferring("nobody")):
        expected = {row.path: [c.text for c in row.captions] for row in seen.dataset().rows}
        found: dict[str, list[str]] = {path: [] for path in expected}
        for name, one in counting(seen).items():
            found[name.split(" (")[0]].append(one.caption.text)
        assert found == expected


def test_finishing_a_scan_keeps_what_models_wrote(view, tmp_path):
    from flux_atelier.core.dataset.scan import scan
    from flux_atelier.core.dataset.sources import list_folder

    run(view, Echo())
    before = by_path(view)
    with Store(view.store, made=False) as store:
        finish(scan(store, list_folder(tmp_path / "dogs")))
    assert by_path(view) == before
