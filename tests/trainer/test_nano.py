"""nano-flux shown, not claimed: the pixel rule, unseen prompts, the VAE's round trip, its files, its style."""

import pytest
import torch

from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.files import read_tensors
from flux_atelier.core.flux.layout import diffusers_config, shape_of, to_diffusers, to_original
from flux_atelier.trainer import models
from flux_atelier.trainer.nano import files, judge, measure, scenes


def test_the_pixel_rule_reads_drawn_scenes():
    chosen = scenes.draw_prompts(400, seed=5)
    pictures = scenes.draw(chosen, seed=6)
    assert measure.content_share(chosen, pictures) >= 0.98


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_the_pixel_rule_names_every_shape(shape):
    scene = scenes.Scene(shape, "red", "large", "in the center", "plain", "white")
    assert judge.read_scene(scenes.draw([scene], 0)[0]) == (shape, "red", "white")


def test_an_empty_picture_has_no_shape():
    assert judge.read_scene(torch.ones(3, 64, 64)) == (None, None, "white")


def test_scenes_repeat_for_a_seed_and_held_out_prompts_are_apart():
    chosen = scenes.draw_prompts(8, 3)
    assert torch.equal(scenes.draw(chosen, 4), scenes.draw(chosen, 4))
    assert not any(s.held_out for s in scenes.draw_prompts(3000, 0))
    assert all(s.held_out for s in scenes.draw_prompts(200, 0, held_out=True))
    assert len({s.caption for s in scenes.every_scene()}) == len(scenes.every_scene())


def test_painting_changes_the_style_and_keeps_the_scene():
    chosen = scenes.draw_prompts(200, 1)
    plain = scenes.draw(chosen, 1)
    painted = torch.stack([scenes.paint(p, i) for i, p in enumerate(plain)])
    assert torch.equal(painted[0], scenes.paint(plain[0], 0))
    assert measure.content_share(chosen, painted) >= 0.9
    seen = describe(plain[:100]), describe(painted[:100])
    assert style_position(describe(painted[100:]), *seen).mean() == pytest.approx(1, abs=0.2)
    assert style_position(describe(plain[100:]), *seen).mean() == pytest.approx(0, abs=0.2)


def test_unseen_prompts_have_the_right_colour_and_shape():
    chosen, pictures = measure.draw_held_out(60, seed=1)
    assert measure.content_share(chosen, pictures) >= 0.9


def test_the_vae_brings_held_out_pictures_back():
    drawn = scenes.draw(scenes.draw_prompts(64, 1, held_out=True), 1)
    assert measure.round_trip(drawn).mean() >= 26
    assert measure.round_trip(measure.held_out_photographs()).mean() >= 24


def test_files_are_small_half_precision_safetensors():
    found = list(files.FOLDER.rglob("*.safetensors"))
    assert len(found) == 4
    assert sum(f.stat().st_size for f in found) <= 20e6
    for file in found:
        tensors, _ = read_tensors(file)
        assert all(t.dtype == torch.float16 for k, t in tensors.items() if not k.startswith("vae_"))


def test_the_transformer_is_a_real_flux():
    state, _ = read_tensors(files.TRANSFORMER)
    shape = shape_of(state)
    assert shape.hidden // shape.heads == 128
    assert shape.guidance
    assert 3e6 <= sum(t.numel() for t in state.values()) <= 6e6


def test_diffusers_opens_it_and_the_way_back_is_exact():
    from diffusers import FluxTransformer2DModel

    state, _ = read_tensors(files.TRANSFORMER)
    model = FluxTransformer2DModel(**diffusers_config(shape_of(state))).half()
    model.load_state_dict(to_diffusers(state))
    back = to_original(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_diffusers_folder_is_read_like_the_single_file(tmp_path):
    from diffusers import FluxTransformer2DModel

    state, _ = read_tensors(files.TRANSFORMER)
    model = FluxTransformer2DModel(**diffusers_config(shape_of(state))).half()
    model.load_state_dict(to_diffusers(state))
    model.save_pretrained(tmp_path / "transformer")
    a, b = models.load_tree(tmp_path / "transformer").state_dict(), models.load_tree(files.TRANSFORMER).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)
