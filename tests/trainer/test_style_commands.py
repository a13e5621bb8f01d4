"""stylise, edit and color from the command line, on nano-flux: beside diffusers' own pipeline, by law, and what is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flux_atelier.core.evaluation.metrics import color_distance, structure_distance
from flux_atelier.core.images import save_picture, to_picture, to_tensor
from flux_atelier.core.style.color import transfer_color
from flux_atelier.core.style.edit import FlowEditOptions, InversionOptions
from flux_atelier.trainer.cli import main
from flux_atelier.trainer.draw import Editing, PipelineArtist, Restyling, flux_pipeline, stylise
from flux_atelier.trainer.encoders import FileEncoder
from flux_atelier.trainer.models import nano
from flux_atelier.trainer.nano import judge, scenes

SCENES = [
    scenes.Scene("circle", "red", "large", "in the center", "plain", "blue"),
    scenes.Scene("square", "green", "large", "on the left", "striped", "white"),
    scenes.Scene("cross", "yellow", "large", "on the right", "plain", "black"),
]
STEPS = 6
COLORS = ["green", "purple", "blue"]
SAME = ["--source-guidance", 3.5, "--target-guidance", 3.5]


@pytest.fixture(scope="module")
def artist():
    return PipelineArtist(flux_pipeline(nano(), FileEncoder(nano(), torch.device("cpu")), None, 1.0), nano().t5_length)


@pytest.fixture(scope="module")
def pictures():
    return scenes.draw(SCENES, 3)


@pytest.fixture
def place(tmp_path, pictures):
    for number, picture in enumerate(pictures):
        save_picture(tmp_path / f"{number}.png", to_picture(picture))
    save_picture(tmp_path / "odd.png", to_picture(pictures[0, :, :50, :41]))
    return tmp_path


def run(capsys, *words, code=0):
    assert main([str(w) for w in words]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def opened(path) -> torch.Tensor:
    return to_tensor(Image.open(path))


def test_whole_steps_are_diffusers_own_pipeline(artist, pictures):
    """FluxImg2ImgPipeline cuts at whole steps: half of ten."""
    theirs = artist.pipe(
        prompt=SCENES[0].caption, image=to_picture(pictures[0]), width=64, height=64, strength=0.5,
        num_inference_steps=10, guidance_scale=3.5, max_sequence_length=nano().t5_length,
        generator=torch.Generator().manual_seed(4), output_type="pt",
    ).images[0]  # fmt: skip
    how = Restyling(strength=0.5, steps=10, seed=4, structure=0)
    ours = artist.stylise(to_tensor(to_picture(pictures[0])), SCENES[0].caption, how)
    assert (ours - theirs).abs().max() <= 2e-3
    assert (ours - pictures[0]).abs().mean() > 0.005


def test_strength_cuts_anywhere_and_zero_is_the_picture(artist, pictures):
    drawn = [
        artist.stylise(pictures[0], SCENES[0].caption, Restyling(strength=s, steps=6, structure=0))
        for s in (0.0, 0.5, 0.55, 0.9)
    ]
    assert torch.equal(drawn[0], pictures[0])
    far = [(d - drawn[1]).abs().mean().item() for d in drawn[2:]]
    assert 0 < far[0] < 0.5 * far[1]


def test_a_list_of_pictures_has_rising_seeds(artist, pictures):
    given = [to_picture(pictures[0])] * 2
    drawn = stylise(artist.pipe, given, [SCENES[0].caption] * 2, 0.7, 4, 8, nano().t5_length)
    for number, picture in enumerate(drawn):
        how = Restyling(strength=0.7, steps=4, seed=8 + number)
        alone = artist.stylise(to_tensor(given[0]), SCENES[0].caption, how)
        assert (to_tensor(picture) - alone).abs().max() <= 0.51 / 255
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_structure_is_kept_as_far_as_asked(artist, pictures):
    lost = []
    for structure in (0.0, 0.3, 1.0):
        how = Restyling(strength=0.95, steps=6, structure=structure)
        lost.append(sum(structure_distance(p, artist.stylise(p, s.caption, how)) for p, s in zip(pictures, SCENES)))  # noqa: B905
    assert lost[0] > lost[1] > lost[2] and lost[2] < 0.7 * lost[0]


@pytest.mark.parametrize("options", [FlowEditOptions(), InversionOptions(gamma=0, eta=0.6, eta_to=0.3)])
def test_another_text_changes_the_colour_and_leaves_the_rest(artist, pictures, options):
    for picture, scene, color in zip(pictures, SCENES, COLORS, strict=True):
        target = replace(scene, color=color)
        how = Editing(
            source=scene.caption, target=target.caption, options=options, steps=12, source_guidance=3.5,
            target_guidance=3.5,
        )  # fmt: skip
        edited = artist.edit(picture, how)
        assert judge.read_scene(edited) == (scene.shape, color, scene.background)
        change = (edited - artist.decode(artist.encode(picture[None]))[0]).abs().mean(0)
        assert change[1:5].mean() <= 0.03


def test_equal_texts_return_the_picture_as_the_vae_gives_it_back(artist, place, capsys):
    text = SCENES[0].caption
    words = ["--source", text, "--target", text, "--steps", 6, *SAME]
    run(capsys, "edit", place / "0.png", *words, "--out", place / "same.png")
    known = artist.decode(artist.encode(opened(place / "0.png")[None]))[0]
    assert (opened(place / "same.png") - known).abs().max() <= 1 / 255


def test_the_edit_command_changes_the_named_colour(place, capsys):
    words = ["--source", SCENES[0].caption, "--target", replace(SCENES[0], color="green").caption, "--steps", 12, *SAME]
    run(capsys, "edit", place / "0.png", *words, "--out", place / "a.png")
    run(capsys, "edit", place / "0.png", *words, "--out", place / "b.png", "--method", "rf-inversion", "--gamma", 0.2)
    for name in ("a.png", "b.png"):
        assert judge.read_scene(opened(place / name)) == ("circle", "green", "blue")
    run(capsys, "edit", place / "0.png", *words, "--out", place / "c.png", "--strength", 0)
    assert (opened(place / "c.png") - opened(place / "0.png")).abs().mean() < 0.03


def test_any_size_and_a_mask(place, capsys, pictures):
    mask = np.zeros((50, 41), np.uint8)
    mask[:, :16], mask[:, 16:20] = 255, 128
    Image.fromarray(mask).save(place / "mask.png")
    source = opened(place / "odd.png")
    given = [place / "odd.png", "--mask", place / "mask.png"]
    run(
        capsys,
        "edit",
        *given,
        "--source",
        "a red circle",
        "--target",
        "a green cross",
        "--steps",
        4,
        "--out",
        place / "e.png",
    )
    run(
        capsys, "stylise", *given, "--prompt", "a green cross", "--steps", 4, "--keep-colors", "--out", place / "styled"
    )
    for path in (place / "e.png", place / "styled" / "odd.png"):
        made = opened(path)
        assert made.shape == source.shape and torch.equal(made[..., 20:], source[..., 20:])
        assert (made - source)[..., :16].abs().mean() > 0.01


def test_colours_of_a_restyled_picture(place, capsys):
    far = {}
    for name, words in {"drawn": [], "kept": ["--keep-colors"], "taken": ["--color-from", place / "1.png"]}.items():
        out = place / name
        given = ["--strength", 0.9, "--steps", 4, "--prompt", "a large red circle", "--out", out]
        run(capsys, "stylise", place / "0.png", *given, *words)
        made = opened(out / "0.png")
        far[name] = [color_distance(made, opened(place / f"{n}.png")) for n in (0, 1)]
    assert far["kept"][0] < far["drawn"][0] and far["taken"][1] < 0.7 * far["drawn"][1]


@pytest.fixture(scope="module")
def graph(comfyui):
    """nano-flux as ComfyUI loads it, and its noise levels."""
    import comfy.samplers
    import comfy.utils

    from flux_atelier.nodes import host

    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        parts = host.load_nano_model(), host.load_nano_clip(), host.load_nano_vae()
        return *parts, comfy.samplers.calculate_sigmas(parts[0].get_model_object("model_sampling"), "simple", STEPS)


def test_the_command_draws_what_the_node_draws(graph, artist, pictures):
    from flux_atelier.nodes.style import Stylise

    *parts, sigmas = graph
    mask = torch.zeros(1, 64, 64)
    mask[..., :40] = 1
    given = dict(zip(("model", "clip", "vae"), parts, strict=True), images=pictures[:1].permute(0, 2, 3, 1), mask=mask)
    with torch.inference_mode():
        theirs = Stylise.PREPARE_CLASS_CLONE(None).execute(
            **given, prompt=SCENES[0].caption, strength=0.85, seed=5, steps=STEPS, guidance=3.5
        )
    how = Restyling(strength=0.85, steps=STEPS, seed=5)
    ours = artist.stylise(pictures[0], SCENES[0].caption, how, mask, sigmas)
    assert (ours - pictures[0]).abs().mean() > 0.005
    assert (ours - theirs.args[0][0].permute(2, 0, 1)).abs().mean() <= 1e-4


@pytest.mark.parametrize(
    ("name", "kind"), [("FlowEditSampler", FlowEditOptions), ("RFInversionSampler", InversionOptions)]
)
def test_the_command_edits_as_the_sampler_does(graph, artist, pictures, name, kind):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    from flux_atelier.nodes import editing, host

    model, clip, vae, sigmas = graph
    words = SCENES[0].caption, replace(SCENES[0], color="green").caption
    with torch.inference_mode():
        texts = [host.condition(clip, text, guidance) for text, guidance in zip(words, (1.5, 5.5), strict=True)]
        guider = editing.EditGuider.execute(model, *texts).args[0]
        sampler = getattr(editing, name).execute(**kind().model_dump()).args[0]
        latent = {"samples": vae.encode(pictures[:1].permute(0, 2, 3, 1))}
        made = SamplerCustomAdvanced.execute(Noise_RandomNoise(3), guider, sampler, sigmas, latent).args[0]
        theirs = vae.decode(made["samples"])[0].permute(2, 0, 1)
    how = Editing(source=words[0], target=words[1], options=kind(), steps=STEPS, seed=3)
    ours = artist.edit(pictures[0], how, sigmas=sigmas)
    assert (ours - pictures[0]).abs().mean() > 0.02
    assert (ours - theirs).abs().mean() <= 1e-4


@pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])
def test_one_map_for_all_pictures_there_and_through_a_cube(place, capsys, method):
    save_picture(place / "white.png", Image.new("RGB", (30, 20), "white"))
    sources = [place / "0.png", place / "odd.png", place / "white.png"]
    given = ["--reference", place / "1.png", "--method", method, "--strength", 0.8]
    run(capsys, "color", *sources, *given, "--out", place / "direct", "--cube", place / "look.cube")
    run(capsys, "color", *sources, "--map", place / "look.cube", "--out", place / "mapped")
    for name in ("0.png", "odd.png"):
        direct, mapped = (opened(place / folder / name) for folder in ("direct", "mapped"))
        assert (direct - mapped).abs().max() <= 1.01 / 255 and (direct - opened(place / name)).abs().max() > 0.1
    assert torch.equal(opened(place / "direct" / "white.png"), torch.ones(3, 20, 30))
    run(capsys, "color", place / "0.png", *given, "--out", place / "one")
    alone = transfer_color(opened(place / "0.png")[None], opened(place / "1.png"), 0.8, method)[0]
    assert (opened(place / "one" / "0.png") - alone).abs().max() <= 0.51 / 255


def test_transparency_outlives_other_colours(place, capsys):
    with Image.open(place / "0.png") as picture:
        clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(place / "clear.png")
    run(capsys, "color", place / "clear.png", "--reference", place / "1.png", "--out", place / "made")
    with Image.open(place / "made" / "clear.png") as made:
        assert made.mode == "RGBA"
        assert made.getchannel("A").tobytes() == clear.getchannel("A").tobytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["edit", "0.png", "--source", "a", "--target", "b", "--out", "x.png", "--gamma", "0.5"], "belongs to --method rf"),
        (["edit", "0.png", "--source", "a", "--target", "b", "--out", "x.png", "--strength", "2"], "0 to 1"),
        (["edit", "0.png", "--source", "a", "--target", "b", "--out", "0.png"], "one of the files that are read"),
        (["edit", "0.png", "--source", "a", "--target", "b", "--out", "x.png", "--mask", "odd.png"], "41 x 50 pixels"),
        (["stylise", "0.png", "--out", "x", "--strength", "1.5"], "0 to 1"),
        (["stylise", "0.png", "--out", "."], "one of the files that are read"),
        (["stylise", "0.png", "--out", "x", "--structure", "2"], "structure is 2"),
        (["edit", "0.png", "--source", "a", "--target", "b", "--out", "x.txt"], "ends in .png"),
        (["stylise", "0.png", "--out", "x", "--mask", "odd.png"], "41 x 50 pixels"),
        (["color", "0.png", "--reference", "1.png", "--cube", "x.txt"], "ends in .cube"),
        (["color", "0.png", "--reference", "1.png"], "nothing to write"),
        (["color", "0.png", "--map", "a.cube", "--cube", "b.cube", "--out", "x"], "Leave out one"),
        (["color", "0.png", "--map", "a.cube", "--out", "x"], "no file a.cube"),
        (["color", "0.png", "x/0.png", "--map", "a.cube", "--out", "y"], "Two of the pictures"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_nothing_is_written(place, capsys, monkeypatch, words, told):
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.rglob("*"))
    assert told in run(capsys, *words, code=2)
    assert sorted(path.name for path in place.rglob("*")) == before
