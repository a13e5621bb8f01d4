"""The dataset commands, one after another, as a person types them."""

import json

import pytest
from PIL import Image

from flux_atelier.core.dataset.view_file import read_view
from flux_atelier.trainer import cli
from flux_atelier.trainer.nano.photos import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "moon")


def run(capsys, *command) -> str:
    """Run a command as typed; its output."""
    code = cli.main([str(part) for part in command])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        path = tmp_path / "pictures" / ("cats" if name == "chelsea" else "others") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(name).convert("RGB").resize((320, 288)).save(path)
    with Image.open(tmp_path / "pictures" / "others" / "rocket.png") as rocket:
        rocket.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "pictures" / "others" / "rocket2.jpg")
    (tmp_path / "pictures" / "others" / "coffee.txt").write_text("a cup on the left")
    return tmp_path


def test_the_whole_way_from_a_folder_to_another_trainer(place, capsys):
    assert "7 of 7 pictures kept" in run(capsys, "load", "pictures", "--out", "all.json")
    said = run(capsys, "curate", "all.json", "--out", "best.json", "--min-side", 100, "--sheet", "sheet.jpg")
    assert "left out others/rocket2.jpg: duplicate: of others/rocket.png, hash" in said and "6 of 7" in said
    assert (place / "sheet.jpg").is_file()
    assert "of 6 pictures have a face" in run(capsys, "faces", "best.json", "--out", "faces.json")
    run(capsys, "crop", "faces.json", "--out", "cropped.json", "--aspect", "square")
    assert all(row.crop and row.crop[2] == row.crop[3] == 288 for row in read_view(place / "cropped.json").rows())
    assert "6 pictures in 1 bucket" in run(capsys, "buckets", "cropped.json", "--resolution", 256)
    said = run(capsys, "split-dataset", "cropped.json", "--out", "split.json", "--validation", 0.2)
    assert "5 train" in said and "1 validation" in said
    assert "cats: " in run(capsys, "balance", "split.json", "--out", "even.json")
    run(capsys, "caption", "even.json", "--out", "said.json", "--template", "{name} of {folder}")
    run(capsys, "filter", "said.json", "caption:of", "--order=-sharpness", "--most", 2, "--out", "two.json")
    assert len(read_view(place / "two.json")) == 2
    said = run(capsys, "augment", "said.json", "--out", "more.json", "--copies", 1)
    kept = [row for row in read_view(place / "said.json").rows() if row.split == "train"]
    assert f"{6 + len(kept)} of {7 + len(kept)} pictures kept, 1 duplicate" in said
    assert ("coffee.png says left" in said) == any(row.path.endswith("coffee.png") for row in kept)
    said = run(capsys, "report", "more.json", "--page", "page.html")
    assert "all of it on one page" in said and (place / "page.html").stat().st_size > 10_000
    run(capsys, "export", "more.json", "exported", "--format", "kohya")
    back = run(capsys, "import", "exported", "--format", "kohya", "--out", "back.json")
    count = len(read_view(place / "more.json"))
    assert f"{count} of {count} pictures kept" in back
    texts = {row.captions[0].text for row in read_view(place / "back.json").rows()}
    assert "chelsea of cats" in texts and "a cup on the left" in texts


def test_the_files_name_what_is_wrong(place, capsys):
    (place / "old.json").write_text(json.dumps({"version": 1, "dataset": {}}))
    for command, words in (
        (("curate", "old.json"), "not a saved dataset"),
        (("filter", "pictures", "sharpnes > 1"), "Did you mean sharpness?"),
        (("balance", "pictures", "--by", "colour"), "cannot be grouped by"),
        (("export", "nowhere", "out"), "nothing at"),
    ):
        assert cli.main([str(part) for part in command]) != 0
        assert words in capsys.readouterr().err
    assert not (place / "out").exists()
