"""Restyling and colours as nodes, in the real ComfyUI: laws on nano-flux with the painterly LoRA, tables beside FFmpeg."""

import itertools
from pathlib import Path

import comfy.model_management
import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import color_distance, structure_distance
from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.files import read_tensors
from flux_atelier.nodes import host
from flux_atelier.trainer.nano import files, scenes

STEPS = 6
CHOSEN = scenes.draw_prompts(4, 21, held_out=True, sizes=("medium", "large"))


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(scope="module")
def painter(nano):
    """nano-flux with the painterly LoRA."""
    lora = Path(files.__file__).parent / "loras" / "painted.safetensors"
    with torch.inference_mode():
        return host.with_lora(nano[0], read_tensors(lora)[0], 1.0)


@pytest.fixture(scope="module")
def images():
    return scenes.draw(CHOSEN, 5).permute(0, 2, 3, 1).contiguous()


def stylised(nano, model, images, **changes):
    from flux_atelier.nodes.style import Stylise

    given = dict(
        images=images, model=model, clip=nano[1], vae=nano[2], prompt="\n".join(s.caption for s in CHOSEN[: len(images)]),
        strength=0.6, seed=0, steps=STEPS, guidance=3.5,
    )  # fmt: skip
    return run(Stylise, **given | changes).args[0]


def lost(images, drawn) -> float:
    """Structure distance, the mean of the pictures."""
    pairs = zip(images.permute(0, 3, 1, 2), drawn.permute(0, 3, 1, 2), strict=True)
    return sum(structure_distance(a, b) for a, b in pairs) / len(images)


def apart(images, drawn) -> float:
    """Colour distance, the mean of the pictures."""
    pairs = zip(images.permute(0, 3, 1, 2), drawn.permute(0, 3, 1, 2), strict=True)
    return sum(color_distance(a, b) for a, b in pairs) / len(images)


def plain_drawing(nano):
    with torch.inference_mode():
        text = host.condition(nano[1], CHOSEN[0].caption, 3.5)
        return host.sample(nano[0], text, torch.zeros(1, 16, 8, 8), 7, 4)


def test_strength_zero_is_the_picture_and_one_forgets_it(nano, painter, images):
    assert torch.equal(stylised(nano, painter, images, strength=0.0), images)
    other = scenes.draw([scenes.Scene("ring", "white", "large", "on the left", "dotted", "black")], 3)
    whole = dict(strength=1.0, structure=0.0, prompt=CHOSEN[0].caption, steps=4)
    drawn = [stylised(nano, painter, each, **whole) for each in (images[:1], other.permute(0, 2, 3, 1))]
    assert torch.equal(*drawn)


def test_without_a_lora_and_at_strength_one_it_is_plain_drawing(nano, images):
    drawn = stylised(nano, nano[0], images[:1], strength=1.0, structure=0.0, seed=7, steps=4)
    with torch.inference_mode():
        assert torch.equal(drawn, nano[2].decode(plain_drawing(nano)).float())


def test_more_strength_brings_more_style_and_loses_more_structure(nano, painter, images):
    target = describe(
        torch.stack([scenes.paint(p, i) for i, p in enumerate(scenes.draw(scenes.draw_prompts(24, 3), 8))])
    )
    base = describe(scenes.draw(scenes.draw_prompts(24, 4), 9))
    style, structure = [], []
    for strength in (0.1, 0.45, 0.9):
        drawn = [stylised(nano, painter, images, strength=strength, structure=0.0, seed=seed) for seed in (0, 1)]
        style.append(sum(style_position(describe(d.permute(0, 3, 1, 2)), base, target).mean().item() for d in drawn))
        structure.append(sum(lost(images, d) for d in drawn))
    assert style[0] < style[1] < style[2] and style[2] >= 2 * 0.6
    assert structure[0] < structure[1] - 0.1 < structure[2] - 0.2


def test_a_little_more_strength_changes_a_little(nano, painter, images):
    """Between two whole steps of six as well as over one: 0.5 is such a cut."""
    drawn = [stylised(nano, painter, images[:2], strength=s) for s in (0.49, 0.5, 0.51, 0.6)]
    near = [(a - b).abs().mean().item() for a, b in itertools.pairwise(drawn)]
    whole = (drawn[0] - drawn[-1]).abs().mean().item()
    assert all(0 < each < whole for each in near)
    assert max(near[:2]) < 0.5 * whole


def test_structure_and_colours_are_kept_as_far_as_asked(nano, painter, images):
    free, drawn, held = (stylised(nano, painter, images, strength=0.9, structure=s) for s in (0.0, 0.3, 1.0))
    assert lost(images, drawn) < 0.9 * lost(images, free) and lost(images, held) < 0.6 * lost(images, free)
    until = stylised(nano, painter, images, strength=0.9, structure=1.0, structure_until=0.8)
    assert lost(images, held) < lost(images, until) < lost(images, free)
    own = stylised(nano, painter, images, strength=0.9, color="source")
    assert apart(images, own) < 0.8 * apart(images, drawn)
    other = images[2:3, :40]
    taken = stylised(nano, painter, images[:1], strength=0.9, color="reference", color_reference=other)
    assert apart(other, taken) < 0.8 * apart(other, drawn[:1])


def test_a_mask_keeps_what_is_black_bit_by_bit_and_blends_what_is_grey(nano, painter, images):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :24], mask[:, :, 24:32] = 1, 0.5
    images = images[:2]
    soft, tinted = (stylised(nano, painter, images, strength=0.9, mask=mask, color=c) for c in ("drawn", "source"))
    for drawn in (soft, tinted):
        assert torch.equal(drawn[:, :, 32:], images[:, :, 32:])
        change = (drawn - images).abs().mean((0, 1, 3))
        assert change[:24].mean() > 0.02 and 0 < change[24:32].mean() < change[:24].mean()
    hard = stylised(nano, painter, images, strength=0.9, mask=(mask > 0).float())
    assert torch.allclose(soft, torch.lerp(images, hard, mask[..., None]), atol=1e-5)
    white = stylised(nano, painter, images[:1], mask=torch.ones(1, 64, 64))
    assert torch.allclose(white, stylised(nano, painter, images[:1]), atol=1e-5)


def test_a_mask_for_each_picture_and_one_of_another_size(nano, painter, images):
    masks = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)])
    drawn = stylised(nano, painter, images[:2], mask=masks, steps=4)
    assert torch.equal(drawn[0], images[0]) and not torch.equal(drawn[1], images[1])
    with pytest.raises(AtelierError, match="3 masks for 2 pictures"):
        stylised(nano, painter, images[:2], mask=torch.ones(3, 8, 8))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_pictures_of_half_precision_take_a_mask_and_stay_so(nano, painter, images, kind):
    """As with ComfyUI's --fp16-intermediates; masks stay float32 there."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :24], mask[:, :, 24:32] = 1, 0.5
    half = images[:2].to(kind)
    for color in ("drawn", "source"):
        drawn = stylised(nano, painter, half, mask=mask, color=color, steps=4)
        single = stylised(nano, painter, half.float(), mask=mask, color=color, steps=4)
        assert drawn.dtype == kind and torch.equal(drawn[:, :, 32:], half[:, :, 32:])
        assert (drawn.float() - single).abs().max() < 0.04


@pytest.mark.parametrize("size", [(50, 70), (9, 33)])
def test_sizes_and_transparency_stay(nano, painter, images, size):
    alpha = torch.rand(1, *size, 1, generator=torch.Generator().manual_seed(2))
    picture = torch.cat(
        [torch.nn.functional.interpolate(images[:1].permute(0, 3, 1, 2), size).permute(0, 2, 3, 1), alpha], -1
    )
    drawn = stylised(nano, painter, picture, steps=4)
    assert drawn.shape == picture.shape and torch.equal(drawn[..., 3], picture[..., 3])
    assert (drawn[..., :3] - picture[..., :3]).abs().mean() < 0.25
    assert torch.equal(stylised(nano, painter, picture, strength=0.0), picture)


def test_a_picture_becomes_the_same_alone_and_in_a_batch(nano, painter, images):
    both = stylised(nano, painter, images[:2], steps=4)
    assert torch.equal(both[1:], stylised(nano, painter, images[1:2], steps=4, prompt=CHOSEN[1].caption))


def test_the_model_is_as_it_was(nano, painter, images):
    before = plain_drawing(nano)
    options = str(nano[0].model_options)
    stylised(nano, nano[0], images[:1], structure=0.8, mask=torch.ones(1, 64, 64), steps=4)
    stylised(nano, painter, images[:1], structure=0.8, color="source", steps=4)
    assert torch.equal(before, plain_drawing(nano)) and str(nano[0].model_options) == options


def test_every_step_moves_the_bar_and_every_picture_is_shown(nano, painter, images, monkeypatch):
    told = []
    monkeypatch.setattr(
        host.Progress, "at", lambda self, value, picture=None: told.append((value, self.total, picture))
    )
    stylised(nano, painter, images[:2], strength=0.5, steps=4)
    assert [t[0] for t in told] == list(range(1, 7)) and {t[1] for t in told} == {6}
    assert [t[2].size for t in told[-2:]] == [(64, 64)] * 2


def test_a_cancel_stops_at_the_next_step(nano, painter, images, monkeypatch):
    steps = []

    def at(self, value, picture=None):
        steps.append(value)
        comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(host.Progress, "at", at)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        stylised(nano, painter, images)
    assert steps == [1]


def test_a_missing_reference_is_told(nano, painter, images):
    with pytest.raises(AtelierError, match="Connect color_reference"):
        stylised(nano, painter, images, color="reference")


# Colours, without a model.


def shot(seed, count=3):
    """Frames of one scene whose brightness drifts a little, [B, H, W, 3]."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, generator=rng)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8, generator=rng), (48, 64), mode="bicubic")
    picture = (torch.einsum("ij,bjhw->bihw", mix, picture) / mix.sum(1).view(3, 1, 1)).clamp(0, 1)
    return torch.cat([picture * (1 - 0.02 * n) for n in range(count)]).permute(0, 2, 3, 1).contiguous()


def colored(images, reference, **changes):
    from flux_atelier.nodes.color import TransferColor

    return run(TransferColor, images=images, reference=reference, **{"strength": 1.0} | changes)


@pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])
def test_each_shot_has_one_map_and_flat_frames_stay(method):
    clip = torch.cat([shot(1), torch.zeros(1, 48, 64, 3), shot(2) ** 2])
    reference = shot(3, 1)
    made = colored(clip, reference, method=method, shots="each shot")
    assert made.ui["text"] == ["3 shots"]
    parts = [colored(part, reference, method=method).args[0] for part in (clip[:3], clip[4:])]
    assert torch.allclose(made.args[0][:3], parts[0], atol=1e-5) and torch.allclose(
        made.args[0][4:], parts[1], atol=1e-5
    )
    assert torch.equal(made.args[0][3], clip[3])
    one = colored(clip, reference, method=method).args[0]
    assert (one[:3] - parts[0]).abs().max() > 0.02


def test_a_mask_strength_and_alpha_of_a_transfer():
    clip, reference = shot(1), shot(3, 1)
    alpha = torch.rand(3, 48, 64, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 48, 64)
    mask[..., :30] = 1
    made = colored(torch.cat([clip, alpha], -1), reference, mask=mask).args[0]
    assert torch.equal(made[..., 3:], alpha) and torch.equal(made[:, :, 30:, :3], clip[:, :, 30:])
    assert torch.allclose(made[:, :, :30, :3], colored(clip[:, :, :30], reference).args[0], atol=1e-4)
    assert torch.equal(colored(clip, reference, strength=0.0).args[0], clip)


@pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_colours_of_half_precision_are_worked_on_in_single(method, kind):
    clip, reference = torch.cat([shot(1), shot(2)]).to(kind), shot(3)[:1].to(kind)
    mask = torch.linspace(0, 1, clip.shape[2]).expand(1, *clip.shape[1:3])
    given = dict(method=method, shots="each shot", mask=mask)
    half, single = (colored(c, r, **given) for c, r in ((clip, reference), (clip.float(), reference.float())))
    half, single = (getattr(found, "args", (found,))[0] for found in (half, single))
    assert half.dtype == kind and (half.float() - single).abs().max() < 0.01


def test_a_value_that_is_no_number_hides_no_cut():
    clip = torch.cat([shot(1), shot(2)])
    found = colored(clip, shot(3)[:1], shots="each shot")
    clip[1, 4, 4, 0] = float("nan")
    hurt = colored(clip, shot(3)[:1], shots="each shot")
    assert hurt.ui == found.ui


def test_saved_prompts_without_the_added_inputs_still_run():
    clip, reference = shot(1), shot(3, 1)
    assert torch.equal(
        colored(clip, reference).args[0], colored(clip, reference, method="mkl", shots="one map").args[0]
    )


def saved(images, reference, **changes):
    from flux_atelier.nodes.color import SaveColorMap

    given = dict(method="mkl", strength=1.0, size=33, name="looks/warm")
    return run(SaveColorMap, images=images, reference=reference, **given | changes).args


def applied(images, file, **changes):
    from flux_atelier.nodes.color import ApplyColorMap

    return run(ApplyColorMap, images=images, file=file, **{"strength": 1.0} | changes).args[0]


@pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_saved_map_is_the_transfer_within_one_level(method, strength, folders):
    clip, reference = shot(1), shot(3, 1)
    moved, path = saved(clip, reference, method=method, strength=strength)
    assert Path(path) == folders / "output" / "flux_atelier" / "luts" / "looks" / "warm.cube"
    direct = colored(clip, reference, method=method, strength=strength).args[0]
    assert (direct - clip).abs().max() > 0.05
    assert (moved - direct).abs().max() <= 1 / 255 + 1e-6
    for name in (path, "looks/warm", "looks/warm.cube", "flux_atelier/luts/looks/warm.cube"):
        assert (applied(clip, name) - moved).abs().max() <= 1e-5  # the file has six digits


def test_a_map_is_applied_to_every_colour_where_the_mask_is_white():
    clip, reference = shot(1), shot(3, 1)
    _, path = saved(clip, reference)
    flat = torch.full((1, 48, 64, 3), 0.4)
    assert (applied(flat, path) - flat).abs().max() > 0.01
    mask = torch.zeros(1, 48, 64)
    mask[:, :20] = 1
    made = applied(clip, path, mask=mask)
    assert torch.equal(made[:, 20:], clip[:, 20:]) and not torch.equal(made[:, :20], clip[:, :20])
    half, full = applied(clip, path, strength=0.5), applied(clip, path)
    inside = (full > 0) & (full < 1)
    assert inside.float().mean() > 0.5 and torch.allclose(half[inside], (clip + full)[inside] / 2, atol=1e-5)
    assert torch.equal(applied(clip, path, strength=0.0), clip)


def test_a_flat_reference_saves_a_map_of_nothing_and_says_so():
    from flux_atelier.nodes.color import SaveColorMap

    clip = shot(1)
    made = run(
        SaveColorMap, images=clip, reference=torch.ones(1, 8, 8, 3), method="mkl", strength=1.0, size=5, name="none"
    )  # fmt: skip
    assert "changes nothing" in made.ui["text"][0] and torch.allclose(made.args[0], clip, atol=1e-5)


@pytest.mark.parametrize("name", ["../look", "", " . ", "/tmp/look", "a/../../look"])
def test_a_map_is_written_nowhere_else(name, folders):
    from flux_atelier.nodes.color import SaveColorMap

    assert isinstance(SaveColorMap.validate_inputs(name=name), str)
    with pytest.raises(AtelierError):
        saved(shot(1, 1), shot(3, 1), name=name)


def test_a_map_is_read_from_comfyuis_folders_alone(folders, tmp_path):
    from flux_atelier.nodes.color import ApplyColorMap

    _, path = saved(shot(1, 1), shot(3, 1), name="kept")
    outside = tmp_path / "outside.cube"
    outside.write_bytes(Path(path).read_bytes())
    (folders / "input" / "mine.CUBE").write_bytes(Path(path).read_bytes())
    for name in (str(outside), "../outside", "missing", ""):
        assert isinstance(ApplyColorMap.validate_inputs(file=name), str)
        with pytest.raises(AtelierError):
            applied(shot(1, 1), name)
    assert ApplyColorMap.validate_inputs(file="mine.CUBE") is True and ApplyColorMap.validate_inputs(file=None) is True


def test_a_map_that_changed_is_read_again():
    from flux_atelier.nodes.color import ApplyColorMap

    saved(shot(1, 1), shot(3, 1), name="again")
    before = ApplyColorMap.fingerprint_inputs(strength=1.0, file="again")
    saved(shot(1, 1), shot(2, 1), name="again", size=17)
    assert ApplyColorMap.fingerprint_inputs(strength=1.0, file="again") != before
    assert ApplyColorMap.fingerprint_inputs(strength=1.0) is None


def test_a_cancelled_transfer_and_map_stop_and_leave_nothing(folders, monkeypatch):
    def at(self, value, picture=None):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(host.Progress, "at", at)
    for work in (lambda: colored(shot(1), shot(3, 1)), lambda: saved(shot(1), shot(3, 1), name="stopped")):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            work()
    assert not list((folders / "output" / "flux_atelier" / "luts").rglob("*stopped*"))
