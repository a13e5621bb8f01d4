"""The dataset workflows, queued in a real ComfyUI as an API user would, on small real pictures and tiny models."""

import json

import pytest
import tiny_captioners
from comfy_process import Server
from PIL import Image
from test_workflow_runs import DATASET_ROOM, ROOT, queue, shortened

from flux_atelier.core.dataset.exchange.formats import import_rows
from flux_atelier.trainer.nano.photos import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "moon")


def write_photographs(folder) -> None:
    """Six photographs, the mirror image of one, and one that is too small."""
    folder.mkdir(parents=True)
    for name in NAMES:
        photograph(name).convert("RGB").resize((400, 360)).save(folder / f"{name}.jpg", quality=92)
    with Image.open(folder / "rocket.jpg") as rocket:
        rocket.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "rocket again.jpg", quality=80)
        rocket.resize((120, 108)).crop((0, 0, 100, 90)).save(folder / "tiny.jpg")
    (folder / "coffee.txt").write_text("a cup of coffee")


def write_paintings(folder) -> None:
    """A folder as WikiArt's: styles, painters, titles."""
    for i, (style, painter, name) in enumerate(
        (("Impressionism", "claude-monet", "coffee"), ("Impressionism", "claude-monet", "chelsea"),
         ("Impressionism", "berthe-morisot", "rocket"), ("Cubism", "juan-gris", "camera"))
    ):  # fmt: skip
        (folder / style).mkdir(parents=True, exist_ok=True)
        photograph(name).convert("RGB").resize((640, 560)).save(folder / style / f"{painter}_title-{1880 + i}.jpg")


def write_portraits(folder) -> None:
    """One face in two sizes and places, and pictures without one."""
    folder.mkdir(parents=True)
    face = photograph("astronaut").convert("RGB")
    face.save(folder / "a.png")
    face.crop((60, 0, 400, 300)).resize((680, 600)).save(folder / "b.png")
    photograph("coffee").convert("RGB").resize((512, 400)).save(folder / "cup.png")


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    """ComfyUI with the folders and models that the workflows name."""
    made = Server(comfyui, ROOT, tmp_path_factory.mktemp("datasets") / "base")
    write_photographs(made.base / "input" / "my-pictures")
    write_paintings(made.base / "input" / "wikiart")
    write_portraits(made.base / "input" / "portraits")
    models = made.base / "models" / "LLM"
    tiny_captioners.florence2(models / "Florence-2-large")
    tiny_captioners.llava(models / "llama-joycaption-beta-one-hf-llava")
    tiny_captioners.tagger(models / "wd-eva02-large-tagger-v3")
    with made as running:
        yield running


def test_every_dataset_workflow_is_run_here():
    assert set(DATASET_ROOM) == {"curate-folder", "caption-ensemble", "wikiart-impressionism", "portrait-set"}


def test_a_folder_is_curated_reviewed_and_exported(server):
    history = queue(server, shortened("curate-folder"))
    rows = import_rows("kohya", server.base / "output" / "exported" / "my-dataset")
    assert sorted(row.path.rpartition("/")[2] for row in rows) == sorted(f"{name}.jpg" for name in NAMES)
    (view,) = history["outputs"]["3"]["atelier_view"]
    assert (server.base / "output" / "flux_atelier" / "datasets" / view.partition("/")[0] / "atelier.db").is_file()
    assert "6 of 8 pictures are kept" in history["outputs"]["6"]["text"][0] or "6 pictures" in str(history["outputs"])
    assert list((server.base / "output" / "flux_atelier" / "reports").glob("my-pictures-*.html"))


def test_three_models_make_one_caption(server):
    history = queue(server, shortened("caption-ensemble"))
    folder = server.base / "output" / "exported" / "captioned"
    assert (folder / "coffee.txt").read_text().strip() == "a cup of coffee"
    assert len(list(folder.glob("*.jpg"))) == 8
    assert "text" in history["outputs"]["5"] and "text" in history["outputs"]["6"]
    again = queue(server, shortened("caption-ensemble") | {"9": report_of("6")})
    assert "9" in again["outputs"]


def report_of(node: str) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [node, 1]}, "_meta": {"title": "again"}}


def test_one_style_of_wikiart_is_captioned_split_and_balanced(server):
    queue(server, shortened("wikiart-impressionism"))
    folder = server.base / "output" / "exported" / "impressionism"
    rows = {row.path.rpartition("/")[2]: row for row in import_rows("imagefolder", folder)}
    assert len(rows) == 3 and not any("juan-gris" in name for name in rows)
    said = {row.captions[0] for row in rows.values()}
    assert said == {
        "imprs, Impressionism painting by claude monet",
        "imprs, Impressionism painting by berthe morisot",
    }


def test_portraits_are_cropped_around_their_face(server):
    history = queue(server, shortened("portrait-set"))
    folder = server.base / "output" / "exported" / "my-portraits"
    pictures = sorted(folder.rglob("*.png"))
    assert [picture.name for picture in pictures] == ["a.png", "b.png"]
    for picture in pictures:
        with Image.open(picture) as opened:
            assert opened.width / opened.height == pytest.approx(3 / 4, abs=0.01)
        assert json.loads(picture.with_suffix(".json").read_text())["caption"] == "a photo of [trigger]"
    assert "faces cut on 0" in json.dumps(history["outputs"]["5"])
