"""The command line from a folder to a clip, on nano-flux, and what it says when something is wrong."""

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from flux_atelier.core.frames.video import probe, write_video
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.cli import main
from flux_atelier.trainer.nano import files, practice

MAIN = Path(__file__).resolve().parents[2] / "__main__.py"
FAST = ["--resolution", "64", "--batch-size", "2", "--rank", "4", "--gradient-checkpointing", "0", "--no-buckets"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    practice.write_scenes(folder / "pictures", "painted", 6, 1, faults=True)
    return folder


def run(capsys, *words, code=0):
    assert main([str(w) for w in words]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_the_road(place, capsys):
    data, sheet = place / "data.json", place / "sheet.jpg"
    assert "9 of 9 pictures kept" in run(capsys, "load", place / "pictures", "--out", data)
    limits = ("--min-side", 48, "--min-sharpness", 0.05)
    said = run(capsys, "curate", data, "--out", data, "--sheet", sheet, *limits)
    assert "left out tiny.png: too small" in said
    assert "left out copy of the first.png: " in said
    assert sheet.is_file()
    run(capsys, "caption", data, "--out", data, "--template", "a picture of {name}")
    assert "encoded now, 0 were there" in run(
        capsys, "encode", data, "--cache", place / "cache", "--resolution", 64, "--no-buckets"
    )
    lora = place / "runs" / "mine" / "mine.safetensors"
    for steps in (3, 5):
        said = run(
            capsys,
            "train",
            data,
            "--run",
            lora.parent,
            "--steps",
            steps,
            "--cache",
            place / "cache",
            "--sample-every",
            2,
            *FAST,
        )
        assert f"step {steps}/{steps}" in said
    assert read_lora(lora).rank == 4
    assert (lora.parent / "curves.png").is_file()
    assert "layout kohya" in run(capsys, "inspect", lora)
    said = run(
        capsys,
        "compare",
        lora,
        "--prompt",
        "a red circle",
        "--size",
        "64x64",
        "--steps",
        3,
        "--out",
        place / "c.png",
        "--target",
        place / "pictures",
    )
    assert "style figure" in said
    said = run(capsys, "merge", f"{lora}=0.5", f"{lora}=0.5", "--rank", 4, "--out", place / "m.safetensors")
    assert "100.00% of the sum's energy kept" in said
    run(
        capsys,
        "stylise",
        place / "pictures" / "painted-000.png",
        "--lora",
        place / "m.safetensors",
        "--out",
        place / "styled",
        "--steps",
        4,
        "--color-from",
        place / "pictures" / "painted-001.png",
    )
    assert (place / "styled" / "painted-000.png").is_file()
    write_video(place / "a.mp4", torch.rand(4, 3, 32, 32), Fraction(10))
    said = run(capsys, "interpolate", place / "a.mp4", "--rate", "4x", "--out", place / "b.mp4")
    assert said.splitlines()[-2:] == ["16 frames written", f"{place / 'b.mp4'}: 40 frames a second"]
    assert (probe(place / "b.mp4").frames, probe(place / "b.mp4").rate) == (16, 40)


def test_a_stopped_film_plays_and_goes_on(place, capsys, monkeypatch):
    from flux_atelier.core.frames.interpolate import blend, method_of
    from flux_atelier.trainer.commands import frames

    left = [20]

    def stopped(first, second, time):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return blend(first, second, time)

    monkeypatch.setattr(frames, "flow_method", lambda: method_of(stopped))
    source, out = place / "long.mp4", place / "long-60.mp4"
    write_video(source, torch.rand(20, 3, 32, 32), Fraction(24))
    words = ["interpolate", source, "--rate", "60", "--no-cuts", "--quality", 30, "--out", out]
    assert main([str(w) for w in words]) == 130
    said = capsys.readouterr()
    assert f"plays from {place / 'long-60.partial.mp4'}" in said.out
    assert "stopped" in said.err
    assert probe(place / "long-60.partial.mp4").frames == 24  # 19 in between and 5 of the source's
    said = run(capsys, *words)
    assert said.startswith("going on behind frame 24\n")
    assert probe(out).frames == 50
    left[0] = 20
    assert main([str(w) for w in words]) == 130
    capsys.readouterr()
    left[0] = 0
    assert "going on" not in run(capsys, *words, "--no-resume")


def test_a_rife_model_is_fetched_by_name(tmp_path, capsys, monkeypatch):
    from flux_atelier.core.frames.analytic_rife import write_analytic_model
    from flux_atelier.trainer.commands import frames

    monkeypatch.setattr(frames, "fetch_model", lambda name, folder: write_analytic_model(folder / name, "blend"))
    assert str(tmp_path / "rife-v4.6") in run(capsys, "fetch-rife", "rife-v4.6", tmp_path)
    with pytest.raises(SystemExit):
        main(["fetch-rife", "rife-v9", str(tmp_path)])
    assert "rife-v4.26" in capsys.readouterr().err


def test_a_config_file_is_what_a_run_writes(place, capsys):
    config = place / "runs" / "mine" / "config.toml"
    if not config.is_file():
        pytest.skip("the road was not walked")
    said = run(
        capsys, "train", place / "data.json", "--run", place / "runs" / "again", "--config", config, "--steps", 1
    )
    assert "step 1/1" in said
    assert (place / "runs" / "again" / "config.toml").read_text().replace(
        "steps = 1\n", "steps = 5\n", 1
    ) == config.read_text()


def test_a_plan_is_told_and_nothing_is_trained(place, capsys):
    said = run(capsys, "train", place / "pictures", "--run", place / "runs" / "planned", "--plan", "--rank", 8)
    assert "lora on" in said
    assert "per step" in said
    assert ">" in said
    assert not (place / "runs" / "planned").exists()


def test_settings_averages_and_a_fresh_start_from_a_lora(place, capsys):
    folder = place / "runs" / "more"
    run(
        capsys, "train", place / "pictures", "--run", folder, "--trigger", "ohwx", *FAST, "--steps", 4, "--save-every", 2,
        "--optimizer-type", "adafactor", "--adapter-type", "rslora", "--weights", "fp8",
    )  # fmt: skip
    toml = run(capsys, "settings", folder / "more.safetensors")
    assert 'optimizer_type = "adafactor"' in toml
    (place / "again.toml").write_text(toml)
    assert "the mean of 2 states" in run(capsys, "average", folder, place / "mean.safetensors", "--last", 2)
    said = run(
        capsys, "train", place / "pictures", "--run", place / "runs" / "from", "--config", place / "again.toml",
        "--steps", 1, "--start-from", place / "mean.safetensors", "--regularisation", place / "pictures",
        "--class-word", "picture",
    )  # fmt: skip
    assert "step 1/1" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["load", "nowhere"], "There is nothing at"),
        (["train", "nowhere.json"], "There is no folder"),
        (["inspect", "nowhere.safetensors"], "There is no file"),
        (["merge", "a.safetensors=much", "--out", "x"], "no number"),
        (["train", "pictures", "--rank", "0"], "rank is 0"),
        (["train", "pictures", "--optimizer-type", "prodigy"], "Set learning_rate to 1"),
        (["train", "pictures", "--layer-rules", "nothing: rank=2"], "matches no layer"),
        (["train", "pictures", "--mask", "file", "--trigger", "x"], "no name.mask.png"),
        (["train", "pictures", "--resolution", "100"], "multiple of 16"),
        (["train", "pictures", "--model", "flux1-dev.safetensors"], "Give --parts"),
        (["compare", "a.safetensors", "--prompt", "x", "--size", "big"], "width x height"),
        (["interpolate", "nowhere.mp4", "--out", "x.mp4"], "cannot be opened as a video"),
        (["interpolate", "film.mp4", "--out", "x.mp4", "--rate", "fast"], "'fast' is no frame rate"),
        (
            ["interpolate", "film.mp4", "--out", "x.mp4", "--method", "rife"],
            "has no model. Give its folder with --rife",
        ),
        (["interpolate", "film.mp4", "--out", "x.mp4", "--quality", "90"], "quality is 90"),
        (["interpolate", "film.mp4", "--out", "x.gif"], "ending that is not known"),
    ],
)
def test_mistakes_end_with_one_line_and_code_two(place, capsys, monkeypatch, words, message):
    monkeypatch.chdir(place)
    if "film.mp4" in words:
        write_video(place / "film.mp4", torch.rand(2, 3, 32, 32), Fraction(10))
    if words[0] == "compare":
        words = [words[0], str(place / "m.safetensors"), *words[2:]]
        if not (place / "m.safetensors").is_file():
            pytest.skip("the road was not walked")
    said = run(capsys, *words, code=2)
    assert message in said
    assert said.count("\n") == 1


def test_ctrl_c_saves_and_the_run_goes_on(place, capsys):
    folder = place / "runs" / "stopped"
    words = [
        sys.executable,
        str(MAIN),
        "train",
        str(place / "pictures"),
        "--run",
        str(folder),
        "--trigger",
        "ohwx",
        *FAST,
        "--validate-every",
        "1",
    ]
    # A suite that was started in the background has its children ignore the signal.
    child = subprocess.Popen(
        [*words, "--steps", "5000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in child.stdout:
        if line.startswith("step 3/"):
            break
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130, errors
    assert "what was done is saved" in errors
    assert read_lora(folder / "stopped.safetensors").rank == 4
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    done = subprocess.run([*words, "--steps", str(steps + 2)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"step {steps + 2}/{steps + 2}" in done.stdout


@pytest.mark.parametrize(
    "command", ["convert", "merge", "resize --rank 2", "quantise --storage int8", "prune --share 0.1"]
)
def test_a_lora_is_not_written_over_itself(tmp_path, capsys, command):
    source = tmp_path / "a.safetensors"
    source.write_bytes(files.PAINTED.read_bytes())
    name, *options = command.split()
    assert main([name, str(source), *options, "--out", str(source)]) == 2
    assert "is one of the files that are read" in capsys.readouterr().err
    assert source.read_bytes() == files.PAINTED.read_bytes()
