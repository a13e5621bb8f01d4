"""The figures of restyled clips: by hand, beside scikit-image, by law, on disk and drawn."""

import csv
import math
from fractions import Fraction

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.grid import COLORS
from flux_atelier.core.evaluation.metric_plot import check_names, metric_plot, write_measured
from flux_atelier.core.evaluation.metrics import (
    MOST_PIXELS,
    _in_step,
    color_distance,
    flicker,
    judge,
    judge_clips,
    psnr,
    score_list,
    score_table,
    sharpness,
    ssim,
    structure_distance,
    warping_error,
    write_scores,
)  # fmt: skip
from flux_atelier.core.frames.video import read_frames, write_video
from flux_atelier.core.images import save_picture, to_picture


def picture(seed, height=48, width=40):
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 7, 6, generator=rng)
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0].clamp(0, 1)


def still(a, b):
    return torch.zeros(2, *a.shape[-2:])


def test_psnr_and_ssim_beside_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first = picture(0)
    second = (first + torch.randn(first.shape) * 0.05).clamp(0, 1)
    a, b = first.double().numpy(), second.double().numpy()
    assert psnr(first, second) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 0,
    }
    assert ssim(first, second) == pytest.approx(metrics.structural_similarity(a, b, **options), abs=1e-6)


def test_a_picture_beside_itself():
    own = picture(1)
    assert psnr(own, own) == math.inf
    assert ssim(own, own) == pytest.approx(1)
    assert structure_distance(own, own) == pytest.approx(0, abs=1e-4)
    assert color_distance(own, own) == 0


def test_psnr_by_hand():
    assert psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20, abs=1e-4)


def test_structure_knows_shapes_and_not_colours():
    own = picture(2)
    assert structure_distance(own, own * 0.5 + 0.2) < 0.02
    assert structure_distance(own, 1 - own) > 1.9
    assert 0.5 < structure_distance(own, picture(3)) < 1.5
    assert structure_distance(torch.full((3, 20, 20), 0.5), torch.rand(3, 20, 20)) == 0


def test_colour_knows_palettes_and_not_shapes():
    own = picture(4)
    mixed = own.flatten(1)[:, torch.randperm(own[0].numel())].view_as(own)
    assert color_distance(own, mixed) == pytest.approx(0, abs=1e-6)
    black, white = torch.zeros(3, 12, 12), torch.ones(3, 12, 12)
    assert color_distance(black, white) == pytest.approx(50, rel=0.15)
    assert color_distance(own, own * 0.9) < color_distance(own, own * 0.6)


def test_sharpness_by_hand():
    board = ((torch.arange(6)[:, None] + torch.arange(6)) % 2).float().expand(3, 6, 6)
    assert sharpness(board) == pytest.approx(16e3, rel=1e-4)
    assert sharpness(torch.full((3, 6, 6), 0.3)) == pytest.approx(0, abs=1e-9)


def test_warping_error_by_hand():
    before, trust = torch.full((3, 8, 8), 0.5), torch.ones(1, 8, 8)
    assert warping_error(before + 0.1, before, torch.zeros(2, 8, 8), trust) == pytest.approx(10, rel=1e-4)
    trust[:, :4] = 0
    changed = before.clone()
    changed[:, :4] = 1
    assert warping_error(changed, before, torch.zeros(2, 8, 8), trust) == pytest.approx(0, abs=1e-9)
    assert warping_error(changed, before, torch.zeros(2, 8, 8), trust * 0) == 0


def test_warping_error_of_a_clip_that_moves_as_told_is_nothing():
    whole = picture(5, 48, 60)
    step = torch.tensor([3.0, 0.0])[:, None, None].expand(2, 48, 40)
    inside = torch.ones(1, 48, 40)
    inside[..., -6:] = 0
    assert warping_error(whole[..., :40], whole[..., 3:43], step * -1, inside.flip(2)) < 1e-6


def test_flicker_by_hand_and_over_a_cut():
    assert flicker([0.1, 0.2, 0.1]) == pytest.approx(200)
    assert flicker([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0)
    assert flicker([0.1, 0.1, 0.1, 0.8, 0.8, 0.8], cuts=[3]) == pytest.approx(0)
    assert math.isnan(flicker([0.1, 0.9]))
    assert math.isnan(flicker([0.1, 0.9, 0.5, 0.4], cuts=[2]))


def clip(noise, seed=0, count=5):
    rng = torch.Generator().manual_seed(seed)
    return [(picture(6) + torch.randn(3, 1, 1, generator=rng) * noise).clamp(0, 1) for _ in range(count)]


def test_a_clip_is_judged_frame_by_frame_and_a_cut_is_left_out():
    scores = judge(clip(0), clip(0.05), flow=still, cuts=[3])
    assert [f.warping is None for f in scores.frames] == [True, False, False, True, False]
    assert scores.mean("warping") > 10 * judge(clip(0), clip(0.005), flow=still).mean("warping")
    assert scores.flicker > 0
    assert math.isnan(judge(clip(0, count=1), clip(0, count=1), flow=still).mean("warping"))


def test_csv_and_table_say_the_same(tmp_path):
    scores = judge(clip(0), clip(0.05), flow=still)
    rows = list(csv.DictReader(write_scores(tmp_path / "scores.csv", scores).open()))
    assert len(rows) == 6
    assert rows[0]["warping"] == ""
    assert float(rows[-1]["warping"]) == pytest.approx(scores.mean("warping"), rel=1e-5)
    assert float(rows[2]["psnr"]) == pytest.approx(scores.frames[2].psnr, rel=1e-5)
    lines = score_table({"a|b": scores, "same": judge(clip(0), clip(0), flow=still)}).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == 9 for line in lines)
    assert f"{scores.mean('ssim'):.3f}" in lines[2]
    assert "inf" in lines[3]


def test_the_plot_shows_what_differs():
    steady, noisy = judge(clip(0), clip(0.001), flow=still), judge(clip(0), clip(0.05), flow=still)
    sheet = metric_plot({"held": steady, "per frame": noisy})
    assert sheet.size[0] > 600
    assert sheet.tobytes() != metric_plot({"held": steady}).tobytes()
    plots, alone = (metric_plot(c).crop((0, 0, 1280, 720)) for c in ({"a": steady, "b": noisy}, {"b": noisy}))
    assert plots.tobytes() == metric_plot({"another name": steady, "b": noisy}).crop((0, 0, 1280, 720)).tobytes()
    assert {COLORS[0], COLORS[1]} <= set(plots.getdata()) and COLORS[1] not in set(alone.getdata())
    assert metric_plot({"one": judge(clip(0, count=1), clip(0, count=1), flow=still)}).size[0] > 600


def test_wrong_clips_are_told():
    for source, drawn in ((3, 2), (2, 3), (0, 0)):
        with pytest.raises(AtelierError, match="one length"):
            judge(clip(0, count=source), clip(0, count=drawn), flow=still)
    with pytest.raises(AtelierError, match="at least 11 x 11"):
        ssim(torch.rand(3, 10, 20), torch.rand(3, 10, 20))


def shot(seed, count, noise=0.0):
    """Frames of a picture that runs to the right by a pixel a frame."""
    rng = torch.Generator().manual_seed(seed)
    whole = picture(seed, 48, 64)
    frames = [whole[..., n : n + 40] for n in range(count)]
    return [(f + torch.randn(3, 1, 1, generator=rng) * noise).clamp(0, 1) for f in frames]


def test_clips_are_judged_in_one_walk_as_each_alone():
    source, held, wild = shot(7, 6), shot(7, 6, 0.01), shot(7, 6, 0.1)
    seen = []
    together = judge_clips(iter(source), {"held": iter(held), "wild": iter(wild)}, cuts=(), watch=seen.append)
    assert together == {"held": judge(source, held), "wild": judge(source, wild)}
    assert sorted(set(seen)) == list(range(13)) and seen == sorted(seen)
    assert together["held"].mean("warping") < together["wild"].mean("warping") / 10


def test_the_reference_is_whose_palette_is_wanted():
    source, wanted = shot(8, 2), picture(9, 20, 30)
    found = judge_clips(source, {"drawn": source}, wanted)["drawn"]
    assert [f.color for f in found.frames] == pytest.approx([color_distance(f, wanted) for f in source])


def test_cuts_are_found_on_the_source():
    source = [f * 0.3 for f in shot(10, 4)] + [0.7 + 0.3 * f for f in shot(11, 4)]
    drawn = [f * 0.9 for f in source]
    found = judge_clips(source, {"drawn": drawn})["drawn"]
    assert [f.frame for f in found.frames if f.warping is None] == [0, 4]
    assert found == judge(source, drawn, cuts=[4])
    assert found.flicker < judge(source, drawn).flicker / 5


def test_a_single_picture_has_no_figures_of_motion(tmp_path):
    found = judge_clips(shot(12, 1), {"drawn": shot(13, 1)})["drawn"]
    assert found.frames[0].warping is None
    assert math.isnan(found.flicker)
    (row, mean) = csv.DictReader(write_scores(tmp_path / "one.csv", found).open())
    assert (row["warping"], mean["warping"], mean["flicker"]) == ("", "", "")
    assert float(mean["ssim"]) == pytest.approx(found.frames[0].ssim, rel=1e-5)
    cells = [cell.strip() for cell in score_table({"drawn": found}).splitlines()[2].split("|")]
    assert cells[1] == "drawn"
    assert [not cell for cell in cells[2:9]] == [False, False, True, True, False, False, False]


def test_motion_that_nothing_trusts_gives_no_figure():
    rng = torch.Generator().manual_seed(0)
    source = [torch.rand(3, 24, 24, generator=rng), torch.zeros(3, 24, 24)]
    found = judge_clips(source, {"drawn": source}, flow=still, cuts=())["drawn"]
    assert [f.warping for f in found.frames] == [None, None]


def test_alpha_and_one_channel_count_as_their_colours():
    source = shot(14, 2)
    alpha = [torch.cat([f, torch.zeros(1, 48, 40)]) for f in source]
    assert judge(source, alpha).mean("ssim") == pytest.approx(1)
    grey = [f[:1] for f in source]
    assert judge([f[:1].expand(3, -1, -1) for f in source], grey).mean("psnr") == math.inf


def test_a_table_stands_straight_as_plain_text():
    table = score_table({"a": judge(shot(15, 3), shot(16, 3)), "a longer name": judge(shot(15, 3), shot(15, 3))})
    bars = [[i for i, letter in enumerate(line) if letter == "|"] for line in table.splitlines()]
    assert bars == [bars[0]] * 4


def test_the_narrow_list_says_what_the_table_says():
    clips = {"a": judge(shot(15, 3), shot(16, 3)), "b c": judge(shot(15, 1), shot(16, 1))}
    head, *lines = score_list(clips).splitlines()
    assert head.split() == ["a", "b", "c"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in score_table(clips).splitlines()]
    for line, title, *values in zip(lines, cells[0][1:], *(row[1:] for row in cells[2:]), strict=True):
        assert line.split() == [*title.split(), *(v for v in values if v)]
    assert max(map(len, lines)) <= 36


@pytest.mark.parametrize("size", [(11, 11), (75, 13), (74, 20), (150, 40)])
def test_ssim_of_every_height_beside_scikit_image(size):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = picture(17, *size), picture(18, *size)
    known = metrics.structural_similarity(
        a.double().numpy(), b.double().numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1, channel_axis=0,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(known, abs=1e-9)


def test_the_palette_of_a_large_picture_is_that_of_all_its_pixels():
    small = picture(19, 256, 256)
    stripes = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert stripes[0].numel() > MOST_PIXELS
    assert color_distance(small, stripes) < 0.15
    checks = (torch.arange(1024) % 16 < 2).float().expand(3, 1024, 1024)  # a pattern that every 16th pixel would miss
    assert color_distance(checks, torch.full((3, 8, 8), 0.0)) == pytest.approx(100 / 2 / 8, rel=0.15)


@pytest.mark.parametrize(
    "drawn, words",
    [
        (shot(20, 2), "'drawn' ends after 2 frames"), (shot(20, 4), "'drawn' goes on"),
        ([f[:, :40] for f in shot(20, 3)], "40 x 40 pixels, the source's 40 x 48"),
        ([*shot(20, 2), torch.full((3, 48, 40), math.nan)], "Frame 2 of the clip 'drawn' holds values that are no"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_name(drawn, words):
    with pytest.raises(AtelierError, match=words):
        judge_clips(shot(20, 3), {"drawn": drawn}, flow=still)


@pytest.mark.parametrize(
    "names, words",
    [
        ([""], "no name of a file"), ([".."], "no name of a file"), (["a/b"], "no name of a file"),
        (["a\nb"], "no name of a file"), (["a\0b"], "no name of a file"),
        (["Ö" * 51], "at most 100 bytes"), (["x" * 260], "at most 100 bytes"), (["a", "b", "A"], "Two clips are called 'A'"),
    ],
)  # fmt: skip
def test_names_that_are_no_names_of_files(names, words):
    with pytest.raises(AtelierError, match=words):
        check_names(names)
    check_names(["drawn", "held at 0.9", "Öl", "Ö" * 50])


def test_the_folder_holds_a_file_for_each_clip_and_the_plot(tmp_path):
    clips = judge_clips(shot(21, 3), {"a": shot(21, 3), "b": shot(22, 3)}, flow=still)
    plot = write_measured(tmp_path / "deep" / "folder", clips)
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == ["a.csv", "b.csv", "plot.png"]
    assert plot.tobytes() == metric_plot(clips).tobytes()


def command(*words):
    """The lines of `measure`, through its own parser."""
    from argparse import ArgumentParser

    from flux_atelier.trainer.commands.metrics import COMMANDS

    parser = ArgumentParser()
    _, add, run = COMMANDS["measure"]
    add(parser)
    return list(run(parser.parse_args([str(word) for word in words])))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A source, the same darker and with flicker, and a shorter one, as video files."""
    folder = tmp_path_factory.mktemp("films")
    source = shot(23, 4)
    clips = {"source": source, "dark": [f * 0.8 for f in source], "wild": shot(23, 4, 0.1), "short": source[:3]}
    for name, frames in clips.items():
        write_video(folder / f"{name}.mp4", frames, Fraction(8))
    save_picture(folder / "wanted.png", to_picture(picture(24, 20, 20)))
    return folder


def test_the_command_measures_files(films, tmp_path):
    paths = [films / f"{name}.mp4" for name in ("source", "dark", "wild")]
    table, told = command(*paths, "--out", tmp_path / "out")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["dark", "wild"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dark.csv", "plot.png", "wild.csv"]
    assert str(tmp_path / "out") in told
    known = judge_clips(*(read_frames(p) for p in paths[:1]), {"dark": read_frames(paths[1])})["dark"]
    rows = list(csv.DictReader((tmp_path / "out" / "dark.csv").open()))
    assert float(rows[-1]["psnr"]) == pytest.approx(known.mean("psnr"), rel=1e-5)
    options = ("--reference", films / "wanted.png", "--labels", "a, b")
    other, _ = command(*paths, "--out", tmp_path / "out", *options)
    assert [line.split("|")[1].strip() for line in other.splitlines()[2:]] == ["a", "b"]
    assert float(other.splitlines()[2].split("|")[8]) > float(table.splitlines()[2].split("|")[8])


@pytest.mark.parametrize(
    "drawn, more, words",
    [
        (["short"], [], "'short' ends after 3 frames"), (["dark", "dark"], [], "Two clips are called 'dark'"),
        (["dark"], ["--labels", "a,b"], "2 labels for 1 videos"), (["dark"] * 5, [], "Measure at most 4"),
        (["nothing"], [], "nothing.mp4"), (["dark"], ["--reference", "none.png"], "none.png cannot be read"),
    ],
)  # fmt: skip
def test_the_command_says_what_is_wrong_and_writes_nothing(films, tmp_path, drawn, more, words):
    with pytest.raises(AtelierError, match=words):
        command(films / "source.mp4", *(films / f"{d}.mp4" for d in drawn), "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_an_equal_frame_leaves_the_mean_likeness_a_number():
    """The mean is that of the squared errors: 0 and 0.01 have 0.005, which is 23.01 dB."""
    source = [torch.full((3, 16, 16), 0.5)] * 2
    drawn = [source[0], torch.full((3, 16, 16), 0.6)]
    found = judge(source, drawn, flow=still)
    assert found.frames[0].psnr == math.inf
    assert found.mean("psnr") == pytest.approx(23.0103, abs=1e-3)
    assert judge(source, source, flow=still).mean("psnr") == math.inf
    assert "inf" not in score_table({"drawn": found})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_in_single(kind):
    source, drawn = ([frame.to(kind) for frame in shot(25, 3, noise)] for noise in (0.0, 0.05))
    assert judge(source, drawn) == judge([f.float() for f in source], [f.float() for f in drawn])
    assert judge([f.float() for f in source], drawn) == judge(source, drawn)


def test_clips_come_to_where_the_source_is(monkeypatch):
    monkeypatch.setattr("flux_atelier.core.evaluation.metrics._colours", lambda frame, what: frame)
    frames = [torch.empty(3, 16, 16)]
    meta = [torch.empty(3, 16, 16, device="meta")]
    ((plain, drawn),) = _in_step(iter(meta), {"drawn": iter(frames)})
    assert drawn["drawn"].device == plain.device
