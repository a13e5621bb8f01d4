"""Captioning, fusing, linting and editing nodes in a real ComfyUI: its folders, its checks before the queue, its cancel."""

import asyncio
import json
import logging

import numpy as np
import pytest
import tiny_captioners
import torch
from PIL import Image

from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import WrittenCaption

NODES = (
    "CaptionWithModel",
    "CaptionWithTagger",
    "CaptionByEndpoint",
    "DescribeStyle",
    "FuseCaptions",
    "LintCaptions",
    "EditCaptions",
)


def classes() -> dict:
    from flux_atelier.nodes import caption_fusion, caption_lint, captioners

    found = [*captioners.NODES, *caption_fusion.NODES, *caption_lint.NODES]
    return {node.__name__: node for node in found}


@pytest.fixture(scope="module")
def models(comfyui, tmp_path_factory):
    """A models folder as people have one: a captioner below LLM, a tagger, a CLIP, and things that are neither."""
    import folder_paths

    root = tmp_path_factory.mktemp("models")
    tiny_captioners.llava(root / "LLM" / "Qwen-VL" / "tiny")
    (root / "wd14_tagger").mkdir()
    tiny_captioners.tagger(root / "wd14_tagger" / "wd-tiny")
    tiny_captioners.siglip(root / "clip_vision" / "clip-tiny")
    (root / "vae" / "flux").mkdir(parents=True)
    (root / "vae" / "flux" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (root / "LLM" / ".cache").mkdir()
    (root / "LLM" / ".cache" / "config.json").write_text('{"model_type": "llava"}')
    (root / "LLM" / "broken").mkdir()
    (root / "LLM" / "broken" / "config.json").write_text("no json")
    (root / "LLM" / "half").mkdir()
    (root / "LLM" / "half" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "models_dir", str(root))
        patch.setattr(folder_paths, "folder_names_and_paths", {"LLM": ([str(root / "LLM")], set())})
        yield root


@pytest.fixture
def view(folders, tmp_path, models):
    from flux_atelier.core.dataset.opening import open_dataset

    folder = tmp_path / "dogs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (12, 20 + i, 3), dtype=np.uint8)).save(folder / f"p{i}.png")
    (folder / "p1.txt").write_text("a person wrote this")
    steps = open_dataset(folder, tmp_path / "data", measured=False)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def defaults(node) -> dict:
    return {
        item.id: item.default for item in node.GET_SCHEMA().inputs if getattr(item, "default", None) is not None
    }  # fmt: skip


def run(kind: str, view, /, **inputs):
    """Execute a node as ComfyUI does, its other inputs at their defaults: the view and the report."""
    node = classes()[kind]
    with torch.inference_mode():
        out = node.PREPARE_CLASS_CLONE(None).execute(dataset=view, **defaults(node) | inputs)
    assert out.ui.as_dict()["text"] == (out.args[1],)
    return out.args


def captions(view) -> dict[str, dict[str, str]]:
    return {row.path: {c.model or c.author: c.text for c in row.captions} for row in view.rows()}


def put(view, named: dict[str, dict[str, str]]) -> None:
    ids = {row.path: row.id for row in view.rows()}
    with Store(view.store, made=False) as store:
        made = {ids[p]: [WrittenCaption(t, "model", m) for m, t in by.items()] for p, by in named.items()}
        store.caption(made, by="m")


TINY = {"model_folder": "LLM/Qwen-VL/tiny", "max_tokens": 4}


def test_folders_are_found_where_people_keep_them(models, tmp_path, monkeypatch):
    import folder_paths

    from flux_atelier.nodes.host.captioning import clip_folders, tagger_folders, vision_folders

    assert list(vision_folders()) == ["LLM/Qwen-VL/tiny", "LLM/half"]
    assert tagger_folders() == {"wd14_tagger/wd-tiny": models / "wd14_tagger" / "wd-tiny"}
    assert list(clip_folders()) == ["clip_vision/clip-tiny"]
    elsewhere = tmp_path / "disk" / "Florence-2"
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.json").write_text('{"model_type": "florence2"}')
    (elsewhere / "round").symlink_to(elsewhere.parent)  # a link that leads round in a circle
    known = {"LLM": ([str(models / "LLM"), str(tmp_path / "disk")], set()), "datasets": ([str(tmp_path)], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    assert vision_folders()["LLM/Florence-2"] == elsewhere
    assert len(vision_folders()) == 3


def test_a_model_captions_a_view_and_goes_on(view):
    after, report = run("CaptionWithModel", view, batch_size=2, **TINY)
    assert report.splitlines()[0] == "5 captions by tiny, 1 left alone, a person captioned them"
    assert after.captions == ("tiny",)
    assert after.current
    first = captions(view)
    assert first["p1.png"] == {"human": "a person wrote this"}
    assert all(named.get("tiny") for path, named in first.items() if path != "p1.png")
    _, report = run("CaptionWithModel", after, batch_size=2, **TINY)
    assert report.splitlines()[0].startswith("0 captions by tiny, 5 were there already")
    assert captions(view) == first
    run("CaptionWithModel", after, name="short", prompt="in short", first=1, **TINY)
    assert {path: set(named) for path, named in captions(view).items() if "short" in named} == {
        "p0.png": {"tiny", "short"}
    }


def test_a_cancel_keeps_what_is_done(view, monkeypatch):
    import comfy.model_management as memory

    from flux_atelier.nodes import host

    original, seen = host.Progress.at, []

    def cancel(self, value, picture=None):
        seen.append(value)
        if len(seen) == 2:
            memory.interrupt_current_processing()
        original(self, value, picture)

    monkeypatch.setattr(host.Progress, "at", cancel)
    with pytest.raises(memory.InterruptProcessingException):
        run("CaptionWithModel", view, batch_size=2, **TINY)
    monkeypatch.undo()
    assert sum("tiny" in named for named in captions(view).values()) == 4
    _, report = run("CaptionWithModel", view, batch_size=2, **TINY)
    assert report.startswith("1 captions by tiny, 4 were there already")


def test_memory_that_runs_out_is_told(view, monkeypatch, caplog):
    from flux_atelier.trainer.captioners.vision import VisionCaptioner

    answer = VisionCaptioner._answer

    def short(self, pictures, texts):
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, pictures, texts)

    monkeypatch.setattr(VisionCaptioner, "_answer", short)
    with caplog.at_level(logging.WARNING, "flux_atelier"):
        _, report = run("CaptionWithModel", view, batch_size=8, **TINY)
    assert report.startswith("5 captions by tiny")
    assert "went on with 2 pictures at once. Lower batch_size." in report
    assert "memory ran out with 5 pictures" in caplog.text


def test_a_tagger_and_crops(view):
    laid = view.lay({view.ids[0]: {"crop": (0, 0, 4, 4)}})
    after, report = run("CaptionWithTagger", laid, tagger_folder="wd14_tagger/wd-tiny", caption="sks, {answer}")
    assert report.startswith("5 captions by wd-tiny")
    assert captions(view)["p2.png"]["wd-tiny"].startswith("sks, ")
    seen = {row.path: row.crop for row in after.rows()}
    assert seen["p0.png"] == (0, 0, 4, 4)


def test_styles_are_laid_and_not_stored(view):
    words = {"clip_folder": "clip_vision/clip-tiny", "axes": "style", "temperature": 0.001}
    after, report = run("DescribeStyle", view, **words)
    assert report.startswith("style: ")
    assert all(len(row.tags) == 1 and row.tags[0].startswith("style:") for row in after.rows())
    assert [row.tags for row in view.rows()] == [()] * 6
    assert captions(view)["p0.png"] == {}
    after, _ = run("DescribeStyle", view, captions=True, **words)
    assert captions(view)["p0.png"] == {"clip-tiny": after.rows()[0].tags[0].removeprefix("style:")}
    assert captions(view)["p1.png"] == {"human": "a person wrote this"}
    unsure, _ = run("DescribeStyle", view, **words | {"temperature": 100.0, "threshold": 0.9})
    assert [row.tags for row in unsure.rows()] == [()] * 6


def test_captions_are_fused(view):
    put(view, {"p0.png": {"joy": "a red fox, a boat", "wd": "fox, tree"}, "p2.png": {"joy": "a boat", "wd": "tree"}})
    after, report = run("FuseCaptions", view, prefix="sks", weight_rules="joy: 1.5")
    assert captions(view)["p0.png"]["fused"] == "sks, fox"
    assert "fused" not in captions(view)["p2.png"]
    assert "1 captions fused, 1 left alone" in report
    assert "4 have no claim with enough support" in report
    assert "boat  (joy)" in report
    assert after.captions == ("fused",)
    run("FuseCaptions", view, clip_folder="clip_vision/clip-tiny", threshold=1, name="ranked")
    assert set(captions(view)["p2.png"]["ranked"].split(", ")) == {"boat", "tree"}


def test_lint_reports_previews_and_applies(view):
    put(
        view,
        {
            f"p{i}.png": {"joy": f"an oil painting of {x}"}
            for i, x in {0: "a dog", 2: "a cat", 3: "the sea", 4: "a boat", 5: "trees"}.items()
        },
    )
    before = captions(view)
    _, told = run("LintCaptions", view, trigger="sks", fix="nothing")
    _, shown = run("LintCaptions", view, trigger="sks")
    assert "5 trigger" not in told  # the person's caption lacks it as well
    assert "6 trigger, 1 leak" in told
    assert "@@" not in told
    assert "+sks, a dog" in shown
    assert captions(view) == before
    after, done = run("LintCaptions", view, trigger="sks", fix="apply")
    assert captions(after)["p0.png"] == {"joy": "sks, a dog"}
    assert captions(after)["p1.png"] == {"human": "a person wrote this"}
    assert "5 captions changed; one undo takes it back" in done
    with Store(view.store, made=False) as store:
        store.undo()
    assert captions(view) == before


def test_edits_are_shown_first_and_done_once(view):
    put(view, {"p0.png": {"joy": "cat, sky"}})
    words = {"find": "cat", "replacement": "black cat", "human": True, "suffix": "end"}
    _, shown = run("EditCaptions", view, **words)
    assert "+black cat, sky, end" in shown
    assert captions(view)["p0.png"] == {"joy": "cat, sky"}
    for _ in range(2):
        after, _ = run("EditCaptions", view, fix="apply", **words)
        assert captions(after)["p0.png"] == {"joy": "black cat, sky, end"}
        assert captions(after)["p1.png"] == {"human": "a person wrote this, end"}


# --- before the queue ------------------------------------------------------------------------------------------------

MISTAKES = [
    ("CaptionWithModel", {"model_folder": "LLM/gone"}, "no model folder 'LLM/gone'"),
    ("CaptionWithModel", {"model_folder": "LLM/half"}, "no tokenizer"),
    ("CaptionWithModel", TINY | {"prompt": "{tag}"}, "{tag}, which is not known"),
    ("CaptionWithModel", TINY | {"caption": "{ansver}"}, "{ansver}, which is not known"),
    ("CaptionWithModel", TINY | {"name": " human "}, "no person's"),
    ("CaptionWithTagger", {"tagger_folder": "no folder found"}, "no model folder"),
    ("CaptionByEndpoint", {"url": "http://192.168.0.9/v1"}, "Set allow_remote"),
    ("CaptionByEndpoint", {"url": "nonsense"}, "no http address"),
    ("DescribeStyle", {"clip_folder": "LLM/half"}, "no model folder"),
    ("DescribeStyle", {"clip_folder": "clip_vision/clip-tiny", "axes": "mood"}, "no axis mood"),
    ("DescribeStyle", {"clip_folder": "clip_vision/clip-tiny", "vocabulary": "/gone.json"}, "no file /gone.json"),
    ("FuseCaptions", {"weight_rules": "joy"}, "joy: 1.5"),
    ("FuseCaptions", {"synonym_rules": "joy"}, "puppy = dog"),
    ("FuseCaptions", {"prefix": "one two three", "budget": 2}, "prefix"),
    ("FuseCaptions", {"name": "human"}, "no person's"),
    ("FuseCaptions", {"clip_folder": "gone"}, "no model folder"),
    ("EditCaptions", {}, "nothing to do"),
    ("EditCaptions", {"find": "(", "regex": True}, "failed"),
]
RIGHT = [
    ("CaptionWithModel", TINY | {"prompt": "{tags} {caption:wd}"}),
    ("CaptionWithTagger", {"tagger_folder": "wd14_tagger/wd-tiny"}),
    ("CaptionByEndpoint", {"url": "http://192.168.0.9/v1", "allow_remote": True}),
    ("DescribeStyle", {"clip_folder": "clip_vision/clip-tiny"}),
    ("FuseCaptions", {"weight_rules": "joy: 2"}),
    ("FuseCaptions", {"weight_rules": ["2", 0]}),
    ("LintCaptions", {}),
    ("EditCaptions", {"prefix": "sks"}),
    ("EditCaptions", {"find": ["2", 0]}),
]


@pytest.fixture
def checked(models, monkeypatch):
    """ComfyUI's own check of a prompt before it is queued: its errors as text, empty where there are none."""
    import execution

    import nodes

    for node in classes().values():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)

    class Text:
        RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "go", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Text", Text)

    def check(kind: str, /, **inputs) -> str:
        node = classes()[kind]
        prompt = {
            "1": {"class_type": node.GET_SCHEMA().node_id, "inputs": defaults(node) | {"dataset": ["3", 0]} | inputs},
            "2": {"class_type": "Text", "inputs": {}},
            "3": {"class_type": "Dataset", "inputs": {}},
        }

        class Source(Text):
            RETURN_TYPES = ("FLUX_ATELIER_DATASET",)

        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Dataset", Source)
        _, error, _, errors = asyncio.run(execution.validate_prompt("id", prompt, None))
        return json.dumps([error, errors]) if errors or (error and error["type"] != "") else ""

    return check


@pytest.mark.parametrize(("name", "inputs", "told"), MISTAKES)
def test_mistakes_are_told_before_the_queue_runs(checked, name, inputs, told):
    assert told in checked(name, **inputs)


@pytest.mark.parametrize(("name", "inputs"), RIGHT)
def test_what_is_right_is_queued(checked, name, inputs):
    assert checked(name, **inputs) == ""


def test_nodes_are_whole():
    from pathlib import Path

    pages = Path(__file__).resolve().parents[2] / "web" / "docs"
    assert set(classes()) == set(NODES)
    for node in classes().values():
        schema = node.GET_SCHEMA()
        assert schema.category == "Flux Atelier/Captions"
        page = (pages / f"{schema.node_id}.md").read_text()
        for item in schema.inputs:
            assert item.tooltip, item.id
            assert f"`{item.id}`" in page, item.id


def test_lists_with_nothing_to_offer_say_so(folders, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    node = classes()["CaptionWithModel"]
    options = next(item for item in node.define_schema().inputs if item.id == "model_folder").options
    assert options == ["no folder found"]
    assert "LLM" in node.validate_inputs("no folder found", "", "", "{answer}", "")
