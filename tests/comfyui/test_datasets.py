"""The dataset nodes as the executor calls them: from folders, archives and lists to views, and out again."""

import json
import shutil
import zipfile

import pytest
import torch
from PIL import Image

from flux_atelier.core.dataset.store import Store
from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.nano.photos import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "moon")


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


@pytest.fixture
def folder(folders, tmp_path):
    """Six photographs, a mirrored copy of one, a blurred one and a broken one in ComfyUI's input folder."""
    root = folders / "input" / tmp_path.name
    (root / "cats").mkdir(parents=True)
    for name in NAMES:
        small = photograph(name).convert("RGB").resize((320, 288))
        small.save(root / ("cats" if name == "chelsea" else "") / f"{name}.png")
    (root / "coffee.txt").write_text("a cup on the left")
    with Image.open(root / "rocket.png") as rocket:
        rocket.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "rocket again.jpg", quality=90)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0nothing")
    yield root
    shutil.rmtree(root)


def load(folder, validation=0, **take):
    from flux_atelier.nodes.datasets import LoadDataset

    return run(LoadDataset, folder=folder.name, validation=validation, **take).args[0]


def paths(view):
    return [row.path for row in view.rows()]


def test_load_measures_and_tells_what_cannot_be_read(folder):
    from flux_atelier.nodes.datasets import LoadDataset

    out = run(LoadDataset, folder=folder.name, validation=0)
    view, summary = out.args
    assert summary == "7 of 7 pictures kept, 1 unreadable"
    assert "skipped broken.jpg: The file" in out.ui.as_dict()["text"][0]
    assert all(0 < row.scores["sharpness"] < 1 for row in view.rows())
    assert paths(view.filter("human")) == ["coffee.png"]
    assert "output/flux_atelier/datasets" in view.store.as_posix()


def test_an_archive_is_a_dataset_too(folder):
    archive = folder / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(folder / "moon.png", "deep/moon.png")
        packed.writestr("deep/moon.txt", "the moon")
    from flux_atelier.nodes.datasets import LoadDataset

    view = run(LoadDataset, folder=f"{folder.name}/packed.zip", validation=0).args[0]
    assert paths(view) == ["deep/moon.png"] and view.rows()[0].captions[0].text == "the moon"


def test_load_runs_again_for_files_captions_and_a_persons_edits_only(folder):
    from flux_atelier.nodes.datasets import LoadDataset

    def stamp():
        return LoadDataset.fingerprint_inputs(folder=folder.name, validation=0)

    fresh = stamp()
    view = load(folder)
    assert stamp() == fresh
    with Store(view.store) as store:
        store.edit({view.ids[0]: {"boxes": ()}}, "Find Faces")
        assert stamp() == fresh
        store.decide([view.ids[0]], "reject", "human")
    decided = stamp()
    (folder / "moon.txt").write_text("a moon")
    assert len({fresh, decided, stamp()}) == 3
    assert [row.rejected.by for row in load(folder).dataset().rows if row.rejected] == ["human"]


@pytest.mark.parametrize(
    ("name", "words"), [("", "folder is empty"), ("nowhere", "no folder nowhere"), ("../..", "no folder"), ("x.txt", "known kind")]
)  # fmt: skip
def test_a_wrong_folder_is_told_before_the_queue(folders, name, words):
    from flux_atelier.nodes.datasets import LoadDataset

    (folders / "input" / "x.txt").write_text("x")
    assert words in LoadDataset.validate_inputs(folder=name)
    assert LoadDataset.validate_inputs(folder=None) is True


def test_held_out_pictures_stay_when_others_come(folder):
    before = {row.path: row.split for row in load(folder, 2).rows()}
    photograph("ihc").convert("RGB").resize((300, 300)).save(folder / "more.png")
    after = {row.path: row.split for row in load(folder, 2).rows()}
    assert "validation" in before.values() and before.items() <= after.items()


def test_curate_tells_why_and_draws_a_sheet(folder):
    from flux_atelier.nodes.datasets import CurateDataset

    view, sheet, summary = run(CurateDataset, dataset=load(folder), min_side=100, duplicates="fast").args
    assert summary == "6 of 7 pictures kept, 1 duplicate, 1 unreadable"
    assert "mirrored" in view.left_out[0].reason
    assert sheet.ndim == 4 and sheet.shape[-1] == 3
    whole = run(CurateDataset, dataset=load(folder), min_side=300, duplicates="off").args[0]
    assert len(whole) == 0 and len(whole.left_out) == 7


def test_a_cancel_in_the_scan_keeps_what_is_measured(folders, tmp_path, monkeypatch):
    import comfy.model_management as memory

    from flux_atelier.core.dataset import scan
    from flux_atelier.nodes import host

    root = folders / "input" / f"many-{tmp_path.name}"
    root.mkdir()
    for i in range(40):
        Image.effect_noise((64, 64), 20 + i).convert("RGB").save(root / f"{i:02}.png")
    monkeypatch.setattr(scan, "BATCH", 16)
    original = host.Progress.at

    def cancel_after_sixteen(self, value, picture=None):
        if value == 16:
            memory.interrupt_current_processing()
        original(self, value, picture)

    monkeypatch.setattr(host.Progress, "at", cancel_after_sixteen)
    with pytest.raises(memory.InterruptProcessingException):
        load(root)
    monkeypatch.setattr(host.Progress, "at", original)
    store = next((folders / "output" / "flux_atelier" / "datasets").glob(f"many-{tmp_path.name[:20]}*/atelier.db"))
    with Store(store) as opened:
        assert 16 <= len(opened.ids()) < 40
    assert len(load(root)) == 40


def test_filter_parts_a_dataset_in_two(folder):
    from flux_atelier.nodes.datasets import FilterDataset

    given = dict(dataset=load(folder), order="-path", most=2)
    found, others, summary = run(FilterDataset, expression="not path:rocket", **given).args
    assert paths(found) == ["moon.png", "coffee.png"]
    assert sorted(paths(others)) == [
        "astronaut.png",
        "camera.png",
        "cats/chelsea.png",
        "rocket again.jpg",
        "rocket.png",
    ]
    assert summary == "2 of 7 pictures selected"
    with pytest.raises(AtelierError, match="selects none of 7"):
        run(FilterDataset, expression="width > 9999", **given)
    assert FilterDataset.validate_inputs(expression="sharpness > 0.4") is True
    assert "nests deeper" in FilterDataset.validate_inputs(expression="(" * 50 + "kept" + ")" * 50)
    assert "not understood" in FilterDataset.validate_inputs(expression="sharpness >")


def test_split_keeps_copies_together_and_everybody_in_place(folder):
    from flux_atelier.nodes.arranging import SplitDataset

    options = dict(copies_together=True, validation=0.3, test=0.2, by="", seed=0)
    view, train, validation, test, summary = run(SplitDataset, dataset=load(folder), **options).args
    assert len(train) + len(validation) + len(test) == 7 and len(validation) == 2
    splits = {row.path: row.split for row in view.rows()}
    assert splits["rocket.png"] == splits["rocket again.jpg"]
    assert paths(validation) == [path for path, split in splits.items() if split == "validation"]
    assert summary.startswith(f"{len(train)} train, 2 validation")
    for i in range(3):
        Image.effect_noise((300, 300), 40 + i).convert("RGB").save(folder / f"a{i}.png")
    later = {row.path: row.split for row in run(SplitDataset, dataset=load(folder), **options).args[0].rows()}
    assert splits.items() <= later.items()
    assert all(row.split != "test" for row in view.dataset().rows)


def test_augment_records_copies_and_mends_their_captions(folder):
    from flux_atelier.nodes.arranging import AugmentDataset

    out = run(AugmentDataset, dataset=load(folder), copies=1)
    view, summary = out.args
    assert len(view) == 14 and summary == "7 copies of 7 pictures"
    assert "coffee.png says left: left and right are swapped" in out.ui.as_dict()["text"][0]
    record = {row.id: row for row in view.dataset().rows}
    cup = next(row for row in record.values() if row.path == "coffee.png" and "+" in row.id)
    assert cup.captions[0].text == "a cup on the right" and cup.ops[0]["name"] == "flip"


def test_balance_weighs_folders_the_same(folder):
    from flux_atelier.nodes.arranging import BalanceDataset

    view, summary = run(BalanceDataset, dataset=load(folder), by="folder", weights="", most=10, seed=0).args
    assert {row.path: row.repeats for row in view.rows()}["cats/chelsea.png"] == 6
    assert summary == "12 pictures an epoch out of 7 to train on"
    assert sum(row.repeats for row in view.dataset().kept) == 12


@pytest.mark.parametrize("form", ["sidecar", "kohya", "ai-toolkit", "simpletuner", "imagefolder"])
def test_what_is_exported_comes_back(folder, folders, form):
    from flux_atelier.nodes.arranging import AugmentDataset
    from flux_atelier.nodes.datasets import CaptionDataset
    from flux_atelier.nodes.exchange import ExportDataset, ImportDataset

    view = run(CaptionDataset, dataset=load(folder), template="{name}", trigger="", write_files=False).args[0]
    first = view.ids[0]
    view = (
        run(AugmentDataset, dataset=view, copies=1)
        .args[0]
        .lay({first: {"crop": (10, 20, 100, 80), "split": "validation"}})
    )
    name = f"{folder.name}-{form}"
    given = dict(dataset=view, format=form, name=name, trigger="", replace=False)
    out, summary = run(ExportDataset, **given).args
    assert out == str(folders / "output" / "exported" / name) and summary.startswith("14 pictures written")
    run(ExportDataset, **given)  # the same again is no change
    back = run(ImportDataset, folder=f"exported/{name}", format=form, trigger="").args[0]
    assert len(back) == 14
    told = sorted((row.captions[0].text, row.split) for row in back.rows())
    assert told == sorted((view.captions_of(row)[0].text, row.split) for row in view.rows())
    sizes = {(row.width, row.height) for row in back.rows()}
    assert (100, 80) in sizes and (320, 288) in sizes
    assert json.dumps(sorted(p.name for p in folder.rglob("*"))).count("+1") == 0


def test_lists_go_to_comfyuis_nodes_and_come_back(folder, nano):
    from comfy_extras.nodes_dataset import MakeTrainingDataset

    from flux_atelier.nodes.exchange import DatasetToImages, ImagesToDataset

    view = load(folder)
    images, texts = run(DatasetToImages, dataset=view, first=0, most=0, limit=8.0).args
    assert len(images) == len(texts) == 7 and images[0].shape == (1, 288, 320, 3)
    assert texts[paths(view).index("coffee.png")] == "a cup on the left"
    _, clip, vae = nano
    with torch.inference_mode():
        latents, _ = MakeTrainingDataset.execute(images, [vae], [clip], texts).args
    assert len(latents) == 7
    back = run(ImagesToDataset, images=images, texts=texts, name=[folder.name]).args[0]
    assert len(back) == 7 and back.rows()[paths(view).index("coffee.png")].captions[0].text == "a cup on the left"
    assert len(run(ImagesToDataset, images=images[:3], name=[folder.name]).args[0]) == 3
    with pytest.raises(AtelierError, match="2 texts for 7 images"):
        run(ImagesToDataset, images=images, texts=["a", "b"], name=[folder.name])
    with pytest.raises(AtelierError, match="GiB as images, above the limit"):
        run(DatasetToImages, dataset=view, first=0, most=0, limit=0.001)
    with pytest.raises(AtelierError, match="There are 7 pictures, and first is 7"):
        run(DatasetToImages, dataset=view, first=7, most=0, limit=8.0)


# --- frames ---


def test_faces_are_found_kept_and_cropped_around(folder):
    from flux_atelier.nodes.datasets import FilterDataset
    from flux_atelier.nodes.framing import FindFaces, SmartCrop

    photograph("astronaut").convert("RGB").save(folder / "astronaut.png")
    view, summary = run(FindFaces, dataset=load(folder), again=False).args
    assert "1 with 1 face" in summary
    faces, _, _ = run(FilterDataset, dataset=view, expression="faces == 1 and face_side > 50", order="", most=0).args
    assert paths(faces) == ["astronaut.png"]
    box = next(box for box in faces.rows()[0].boxes if box["label"] == "face")
    assert 150 < box["x"] + box["w"] / 2 < 300 and 50 < box["y"] + box["h"] / 2 < 200
    cropped, sheet, told = run(
        SmartCrop, dataset=faces, aspect="9:16", resolution=1024, hair=0.4, chin=0.2, beside=0.15, smallest=0.6
    ).args
    x, y, w, h = cropped.rows()[0].crop
    assert w / h == pytest.approx(9 / 16, abs=0.01)
    assert x <= box["x"] and y <= box["y"] and x + w >= box["x"] + box["w"] and y + h >= box["y"] + box["h"]
    assert sheet.ndim == 4 and told.startswith("1 crop, ") and "cut on 0" in told
    assert faces.rows()[0].crop is None  # only laid


def test_boxes_of_any_detector_come_in(folder):
    from flux_atelier.nodes.exchange import DatasetToImages
    from flux_atelier.nodes.framing import BoxesToDataset

    view = load(folder)
    images, _ = run(DatasetToImages, dataset=view, first=0, most=0, limit=8.0).args
    values = [[{"x": 10, "y": 20, "width": 30, "height": 40 + i}] for i in range(len(images))]
    laid, summary = run(BoxesToDataset, dataset=[view], boxes=values, label=["hand"]).args
    assert summary == "7 boxes on 7 pictures"
    assert [row.boxes[0]["h"] for row in laid.rows()] == [40 + i for i in range(7)]
    assert len(laid.filter("box:hand and boxes == 1")) == 7 and len(view.filter("box:hand")) == 0
    with pytest.raises(AtelierError, match="boxes for 3 pictures, but 7 pictures"):
        run(BoxesToDataset, dataset=[view], boxes=values[:3], label=["hand"])


def test_buckets_tell_what_they_cost(folder):
    from flux_atelier.nodes.framing import BucketReport

    text = run(BucketReport, dataset=load(folder), resolution=256, batch_size=8).args[0]
    assert text.startswith("7 pictures in 1 bucket") and "fewer than a batch" in text


def test_the_report_tells_and_writes_its_page(folder):
    from pathlib import Path

    from flux_atelier.core.dataset.report import ReportOptions
    from flux_atelier.nodes.dataset_report import DatasetReport

    image, text, page = run(DatasetReport, dataset=load(folder), copies="fast", **ReportOptions().model_dump()).args
    assert image.ndim == 4 and "1 file" not in text
    assert text.startswith("7 of 7 pictures are kept") and "not measured" in text.lower()
    html = Path(page).read_text()
    assert "broken.jpg" in html and "<script src" not in html and "http://" not in html.replace("http://www.w3.org", "")


# --- what a person decided ---


def test_a_rejected_picture_is_no_best_copy_and_a_kept_one_stays(folder):
    from flux_atelier.nodes.datasets import CurateDataset

    def curated():
        return run(CurateDataset, dataset=load(folder), min_side=100, min_sharpness=0.0, duplicates="fast").args[0]

    ids = {row.path: row.id for row in load(folder).rows()}
    with Store(load(folder).store) as store:
        store.decide([ids["rocket.png"]], "reject", "human")
    record = {row.path: row.kept for row in curated().dataset().rows}
    assert record["rocket again.jpg"] and not record["rocket.png"]
    with Store(load(folder).store) as store:
        store.decide([ids["rocket.png"]], "keep", "human")
        store.decide([ids["rocket again.jpg"]], "keep", "human")
    assert all(row.kept for row in curated().dataset().rows)


def test_rejected_pictures_do_not_count(folder):
    from flux_atelier.nodes.arranging import BalanceDataset, SplitDataset
    from flux_atelier.nodes.datasets import FilterDataset

    view = load(folder)
    gone = [row.id for row in view.rows() if row.path in ("astronaut.png", "camera.png", "moon.png")]
    with Store(view.store) as store:
        store.decide(gone, "reject", "human")
    view = load(folder)
    split = run(SplitDataset, dataset=view, copies_together=False, validation=0.25, test=0.0, by="", seed=0)
    assert split.args[4] == "3 train, 1 validation, 0 test"
    _, told = run(BalanceDataset, dataset=view, by="folder", weights="", most=10, seed=0).args
    assert told == "6 pictures an epoch out of 4 to train on"
    found = run(FilterDataset, dataset=view, expression="", order="path", most=2).args[0]
    assert [row.path for row in found.dataset().kept] == ["cats/chelsea.png", "coffee.png"]


def test_an_export_takes_the_place_of_an_earlier_one_only_if_it_may(folder, folders):
    import comfy.model_management as memory

    from flux_atelier.nodes import host
    from flux_atelier.nodes.exchange import ExportDataset, ImportDataset

    view, name = load(folder), f"again-{folder.name}"
    given = dict(format="imagefolder", name=name, trigger="")
    out = folders / "output" / "exported" / name
    run(ExportDataset, dataset=view.lay({view.ids[0]: {"split": "validation"}}), replace=False, **given)
    (out / "latents.cache").write_text("a trainer's")
    before = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    with pytest.raises(AtelierError, match="an earlier export that differs"):
        run(ExportDataset, dataset=view, replace=False, **given)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == before
    fewer = view.only(view.ids[1:]).lay({view.ids[1]: {"crop": (0, 0, 50, 50)}})
    with pytest.MonkeyPatch.context() as patch:
        original = host.Progress.at

        def cancel_at_three(self, value, picture=None):
            if value == 3:
                memory.interrupt_current_processing()
            original(self, value, picture)

        patch.setattr(host.Progress, "at", cancel_at_three)
        with pytest.raises(memory.InterruptProcessingException):
            run(ExportDataset, dataset=fewer, replace=True, **given)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == before
    run(ExportDataset, dataset=fewer, replace=True, **given)
    back = run(ImportDataset, folder=f"exported/{name}", format="imagefolder", trigger="").args[0]
    assert len(back) == 6 and {row.split for row in back.rows()} == {"train"}
    assert (out / "latents.cache").read_text() == "a trainer's"
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


def test_what_a_person_writes_after_an_import_stands(folder):
    from flux_atelier.core.dataset.stored import WrittenCaption
    from flux_atelier.nodes.exchange import ExportDataset, ImportDataset

    name = f"mine-{folder.name}"
    run(ExportDataset, dataset=load(folder), format="kohya", name=name, trigger="", replace=False)
    given = dict(folder=f"exported/{name}", format="kohya", trigger="")
    view = run(ImportDataset, **given).args[0]
    cup = next(row for row in view.rows() if row.path.endswith("coffee.png"))
    assert view.captions_of(cup)[0].text == "a cup on the left"
    with Store(view.store) as store:
        store.caption({cup.id: [WrittenCaption("my own words")]}, "human")
    again = run(ImportDataset, **given).args[0]
    assert [c.text for row in again.rows() if row.id == cup.id for c in again.captions_of(row)] == ["my own words"]


def test_a_caption_that_cannot_be_read_is_named(folder):
    from flux_atelier.nodes.datasets import LoadDataset

    (folder / "moon.txt").write_bytes("möon".encode("latin-1"))
    out = run(LoadDataset, folder=folder.name, validation=0)
    assert "moon.png: The caption moon.txt is not UTF-8 text" in out.ui.as_dict()["text"][0]
