"""deflicker, stabilise and restyle from the command line, on films of a second and on nano-flux."""

import argparse
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from test_restyle import moving
from test_stream import film, open_files, packets, shown

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import flicker, judge
from flux_atelier.core.frames.restyle import RestyleOptions, restyle
from flux_atelier.core.frames.video import Clip, probe, read_frames, write_video
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.commands import clips
from flux_atelier.trainer.commands.clips import COMMANDS, canvas_of
from flux_atelier.trainer.draw import PipelineArtist, Restyling, flux_pipeline
from flux_atelier.trainer.encoders import FileEncoder
from flux_atelier.trainer.models import nano
from flux_atelier.trainer.nano import files as nano_files
from flux_atelier.trainer.nano import practice

RATE = Fraction(12)


def run(name, *words):
    parser = argparse.ArgumentParser()
    _, add, execute = COMMANDS[name]
    add(parser)
    return list(execute(parser.parse_args([str(w) for w in words])))


def written(path, frames, sound):
    write_video(path, iter(frames), RATE, sound=sound)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return film(tmp_path_factory.mktemp("sound") / "s.mp4", RATE, 12)


@pytest.fixture(scope="module")
def unrest():
    """Twelve frames of a moving picture, each with a brightness and strokes of its own."""
    rng = torch.Generator().manual_seed(3)
    return [(f * 0.7 + 0.15 + 0.04 * torch.randn(3, 1, 1, generator=rng)).clamp(0, 1) for f in moving(12)]


def brightness(frames):
    return [f.mean().item() for f in frames]


def test_deflicker_evens_a_film_out_and_keeps_its_sound(tmp_path, sound, unrest):
    source, out = written(tmp_path / "a.mp4", unrest, sound), tmp_path / "b.mp4"
    (line,) = run("deflicker", source, "--out", out, "--window", 6)
    assert line.endswith("12 frames, 1 shot")
    assert flicker(brightness(read_frames(out))) <= 0.2 * flicker(brightness(read_frames(source)))
    assert packets(out) == packets(source)
    assert probe(out).rate == RATE


def test_stabilise_holds_a_film_by_its_source_and_keeps_its_own_sound(tmp_path, sound, unrest):
    plain, drawn = written(tmp_path / "a.mp4", moving(12), None), written(tmp_path / "b.mp4", unrest, sound)
    out = tmp_path / "c.mp4"
    run("stabilise", plain, drawn, "--out", out)
    source = list(read_frames(plain))
    before, after = (judge(source, read_frames(p)).mean("warping") for p in (drawn, out))
    assert after <= 0.4 * before  # what is left is mostly the motion's own error on a soft picture
    assert packets(out) == packets(drawn)


def test_what_cannot_be_written_is_told_at_once(tmp_path, sound):
    for out, words in ((sound, "one of the files"), (tmp_path / "b.avi", "another ending")):
        with pytest.raises(AtelierError, match=words):
            run("deflicker", sound, "--out", out)


@pytest.fixture(scope="module")
def artist():
    lora = read_lora(nano_files.PAINTED)
    return PipelineArtist(flux_pipeline(nano(), FileEncoder(nano(), torch.device("cpu")), lora, 1.0), nano().t5_length)


def test_frame_by_frame_it_is_what_stylise_draws(artist):
    """Beside the command for pictures, with nothing carried from frame to frame."""
    how = Restyling(steps=4, seed=7)
    frames = practice.moving_shape(2)
    alone = RestyleOptions(coherence=0, noise="fixed", steadiness=0, palette=0)
    drawn = list(restyle(frames, canvas_of(artist, ["a circle"], how, (64, 64)), alone))
    for frame, picture in zip(frames, drawn, strict=True):
        assert (picture - artist.stylise(frame, "a circle", how)).abs().max() < 1e-5


def test_restyle_draws_a_film_and_goes_on_after_a_stop(tmp_path, sound, monkeypatch):
    source, out = written(tmp_path / "a.mp4", practice.moving_shape(6), sound), tmp_path / "b.mp4"
    words = [source, "--out", out, "--lora", nano_files.PAINTED, "--prompt", "a circle", "--steps", 2, "--seed", 4]
    numbers, decode = [], PipelineArtist.decode

    def counted(self, latents):
        if len(numbers) == 3:
            numbers.append(0)
            raise KeyboardInterrupt
        numbers.append(0)
        return decode(self, latents)

    monkeypatch.setattr(PipelineArtist, "decode", counted)
    with pytest.raises(KeyboardInterrupt):
        run("restyle", *words)
    assert probe(tmp_path / "b.partial.mp4").frames == 3
    lines = run("restyle", *words)
    assert len(numbers) == 4 + 3
    assert lines[0] == "going on behind frame 3" and "6 frames written" in lines
    assert probe(out).frames == 6
    assert packets(out) == packets(source)
    source_frames, drawn = list(read_frames(source)), list(read_frames(out))
    assert (drawn[5] - source_frames[5]).abs().mean() > 0.03


def test_stabilise_keeps_the_times_and_the_shape_of_what_was_drawn(tmp_path, sound, unrest):
    like = Clip(96, 96, RATE, 12, Fraction(3, 8), Fraction(64, 45), tick=Fraction(1, 1000))
    stamps = [Fraction(80 * n + 10 * (n % 3), 1000) for n in range(12)]
    plain, drawn = written(tmp_path / "a.mp4", moving(12), None), tmp_path / "b.mp4"
    write_video(drawn, unrest, RATE, sound, like, stamps)
    run("stabilise", plain, drawn, "--out", tmp_path / "c.mp4")
    assert shown(tmp_path / "c.mp4") == shown(drawn) == [Fraction(3, 8) + t for t in stamps]
    assert probe(tmp_path / "c.mp4").aspect == Fraction(64, 45)
    assert packets(tmp_path / "c.mp4") == packets(drawn)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what is open")
def test_a_stopped_stabilise_holds_no_file(tmp_path, unrest, monkeypatch):
    plain, drawn = (
        written(tmp_path / name, frames, None) for name, frames in (("a.mp4", moving(12)), ("b.mp4", unrest))
    )

    def stopped(source, stylised, *_, **__):
        yield from (frame for frame, _ in zip(stylised, range(3), strict=False))
        next(source)
        raise KeyboardInterrupt

    held = None
    monkeypatch.setattr(clips, "stabilise", stopped)
    try:
        run("stabilise", plain, drawn, "--out", tmp_path / "c.mp4")
    except KeyboardInterrupt:
        held = open_files(tmp_path)
    assert held == []


@pytest.mark.parametrize("other", ["transformer.safetensors", "vae/weights.safetensors", None])
def test_restyle_does_not_go_on_with_another_model_in_the_same_place(tmp_path, artist, monkeypatch, other):
    source, out, model = written(tmp_path / "a.mp4", practice.moving_shape(4), None), tmp_path / "b.mp4", tmp_path / "m"
    for part in ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
        (model / part).mkdir(parents=True)
        (model / part / "weights.safetensors").write_bytes(b"one")
    (model / "transformer.safetensors").write_bytes(b"one")
    monkeypatch.setattr(clips, "artist_of", lambda _: artist)
    words = [source, "--out", out, "--model", model / "transformer.safetensors", "--parts", model, "--steps", 1]
    stopped = clips.followed

    def once(steps, place):
        steps = iter(steps)
        next(steps), next(steps)
        steps.close()
        monkeypatch.setattr(clips, "followed", stopped)
        return iter(())

    monkeypatch.setattr(clips, "followed", once)
    run("restyle", *words)
    if other:
        (model / other).write_bytes(b"another")
    assert (run("restyle", *words)[0] == "going on behind frame 2") == (other is None)
