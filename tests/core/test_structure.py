"""Strengths that cut a schedule anywhere, and layouts that are kept: by hand, beside scipy, by law, on nano-flux."""

from dataclasses import replace

import pytest
import torch
from scipy import ndimage
from test_style_edit import SOURCE, nano_source, nano_velocity, painter

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.style.edit import Edit, FlowEditOptions, flow_edit, follow, redraw
from flux_atelier.core.style.structure import (
    StructureOptions,
    continued,
    fitted,
    free_places,
    from_strength,
    keep_structure,
    layout_kept,
    low_pass,
    with_contrast_of,
    with_structure,
)
from flux_atelier.trainer.sampling import sigma_schedule

COLORS = (("red", "white"), ("orange", "black"), ("yellow", "green"), ("white", "blue"))
LEVELS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize(
    ("strength", "levels"),
    [
        (0.0, [0.0]),
        (0.125, [0.1, 0.0]),
        (0.25, [0.2, 0.0]),
        (0.5, [0.5, 0.2, 0.0]),
        (0.6, [0.62, 0.5, 0.2, 0.0]),
        (1.0, [1.0, 0.8, 0.5, 0.2, 0.0]),
    ],
)
def test_a_strength_cuts_the_schedule_at_its_share(strength, levels):
    assert from_strength(LEVELS, strength).tolist() == pytest.approx(levels, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 20, 28])
def test_more_strength_starts_higher_and_never_jumps(steps):
    sigmas = sigma_schedule(steps, 4096)
    starts = torch.stack([from_strength(sigmas, s / 400)[0] for s in range(401)])
    widest = (sigmas[:-1] - sigmas[1:]).max()
    assert (starts.diff() > 0).all()
    assert starts.diff().max() <= widest * steps / 400 + 1e-5


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_out_of_range_is_told(strength):
    with pytest.raises(AtelierError, match="Choose a value from 0 to 1"):
        from_strength(LEVELS, strength)


def random(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [0.25, 1.0, 3.5])
def test_low_pass_is_scipys(width):
    latent = random(2, 3, 9, 12).double()
    reach = max(1, -int(-3 * width // 1))
    theirs = ndimage.gaussian_filter(latent.numpy(), (0, 0, width, width), mode="nearest", radius=(0, 0, reach, reach))
    assert low_pass(latent, width).numpy() == pytest.approx(theirs, abs=1e-6)


def test_low_pass_takes_latents_smaller_than_its_reach():
    flat = torch.full((1, 2, 1, 3), 2.5)
    assert torch.allclose(low_pass(flat, 20), flat)


def test_nothing_to_do_is_nothing_done():
    latent, content = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=2)
    assert keep_structure(latent, content, 0.9, StructureOptions(amount=0)) is latent
    assert keep_structure(latent, content, 0.2, StructureOptions(until=0.3)) is latent
    velocity = lambda x, sigma: x * sigma  # noqa: E731
    guided = with_structure(velocity, content, StructureOptions(until=1.0))
    assert torch.equal(guided(latent, 0.7), velocity(latent, 0.7))
    assert torch.equal(with_structure(velocity, content, StructureOptions(until=0))(latent, 0.0), latent * 0)


@pytest.mark.parametrize("free", [True, False])
def test_a_picture_that_has_the_layout_already_stays(free):
    latent = random(2, 4, 8, 8)
    options = StructureOptions(amount=1, free_palette=free)
    assert torch.allclose(keep_structure(latent, latent, 0.9, options), latent, atol=1e-5)


def test_two_flat_pictures_by_hand():
    """A flat 1 guided by a flat 3: half the way with colours kept, nowhere with a free palette."""
    one, three = torch.ones(1, 2, 8, 8), torch.full((1, 2, 8, 8), 3.0)
    kept = keep_structure(one, three, 0.9, StructureOptions(amount=0.5, free_palette=False))
    assert torch.allclose(kept, torch.full_like(one, 2.0))
    assert torch.allclose(keep_structure(one, three, 0.9, StructureOptions(amount=1)), one)


def test_contrast_by_hand():
    """-1 and 1 with the mean 5 and deviation 3 of 2 and 8 are 2 and 8; a flat channel takes the mean alone."""
    latent = torch.tensor([[[[-1.0, 1.0]], [[4.0, 4.0]]]])
    other = torch.tensor([[[[2.0, 8.0]], [[2.0, 8.0]]]])
    assert with_contrast_of(latent, other).flatten().tolist() == pytest.approx([2, 8, 5, 5])


def test_a_velocity_is_guided_as_its_prediction_is():
    latent, content, sigma = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=2), 0.8
    slope = random(1, 4, 8, 8, seed=3)
    options = StructureOptions(amount=0.7)
    guided = with_structure(lambda x, s: slope, content, options)(latent, sigma)
    wanted = keep_structure(latent - sigma * slope, content, sigma, options)
    assert torch.allclose(latent - sigma * guided, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 6)])
def test_fitted_covers_and_centres(size):
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert fitted(ramp, size).shape == (1, 1, *size)
    assert fitted(ramp, size).mean().item() == pytest.approx(3.5, abs=1e-4)
    assert fitted(ramp, (8, 8)) is ramp


def drawn(texts, options: StructureOptions):
    """Pictures of texts under the layout of others, as latents; the same noise every time."""
    velocity = with_structure(nano_velocity(texts), nano_source()[1], options)
    return follow(velocity, random(4, 16, 8, 8, seed=7), sigma_schedule(8, 16))


def likeness(latents) -> float:
    """How alike coarse shapes are to the source's: mean correlation of places, channel means left out."""
    rows = [low_pass(x, 1) for x in (latents, nano_source()[1])]
    rows = [(x - x.mean((2, 3), keepdim=True)).flatten(1) for x in rows]
    return torch.nn.functional.cosine_similarity(*rows).mean().item()


@pytest.mark.parametrize("free", [True, False])
def test_nano_flux_keeps_the_layout_as_far_as_it_is_asked(free):
    """The text asks for another place and size; the picture's own come back as the amount grows."""
    moved = [replace(scene, place="at the top", size="small") for scene in SOURCE]
    found = [
        likeness(drawn(moved, StructureOptions(amount=amount, radius=8, until=0.2, free_palette=free)))
        for amount in (0.0, 0.5, 1.0)
    ]
    assert found[0] + 0.01 < found[1] and found[1] + 0.02 < found[2]


def test_nano_flux_keeps_its_own_colours_where_the_palette_is_free():
    grounds = [replace(s, background=g, color=c) for s, (g, c) in zip(SOURCE, COLORS, strict=True)]
    means = [
        painter().encoder.decode(drawn(grounds, StructureOptions(amount=a, until=0.2, free_palette=free))).mean((2, 3))
        for a, free in ((0.0, True), (1.0, True), (1.0, False))
    ]
    assert (means[1] - means[0]).norm() < 0.5 * (means[2] - means[0]).norm()


@pytest.mark.parametrize(("size", "made"), [((3, 5), (16, 16)), ((16, 17), (16, 32)), ((32, 48), (32, 48))])
def test_edges_are_continued_and_the_picture_stays(size, made):
    picture = random(2, 3, *size)
    whole = continued(picture)
    assert whole.shape == (2, 3, *made) and torch.equal(whole[..., : size[0], : size[1]], picture)
    assert torch.equal(whole[..., -1, -1], picture[..., -1, -1]) and torch.equal(whole[..., 0, -1], picture[..., 0, -1])
    assert (whole is picture) == (size == made)


def test_a_place_is_free_where_any_of_its_pixels_is():
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 7, 8] = 0.01
    assert free_places(mask).tolist() == [[[[0, 1, 0], [0, 0, 0]]]]
    assert free_places(mask + 1).all() and not free_places(mask * 0).any()


def test_a_layout_is_a_sixteenth_of_the_shorter_side():
    assert [layout_kept(0.5, 0.2, size).radius for size in ((64, 640), (1024, 1024), (4, 4))] == [4, 64, 1]
    assert layout_kept(0.5, 0.2, (64, 64)).amount == 0.5 and layout_kept(0.5, 0.2, (64, 64)).until == 0.2
    with pytest.raises(AtelierError, match="0 to 1"):
        layout_kept(2.0, 0.2, (64, 64))


def test_drawing_again_from_all_noise_is_drawing_and_from_none_is_the_picture():
    clean, noise, bend = random(1, 4, 4, 4), random(1, 4, 4, 4, seed=2), lambda x, sigma: x.tanh() + sigma
    edit = Edit(clean, LEVELS, bend, bend)
    assert torch.allclose(redraw(edit, LEVELS, noise), follow(bend, noise, LEVELS), atol=1e-6)
    assert torch.equal(redraw(edit, from_strength(LEVELS, 0.0), noise), clean)


def test_drawing_again_by_hand_and_where_the_mask_lets_it():
    """A field that knows 5 brings the half-noised 2 there in one step; the masked place goes back to 1."""
    clean, noise = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 3.0)
    known = lambda x, sigma: (x - 5) / sigma  # noqa: E731
    told = []
    edit = Edit(clean, LEVELS, known, known, torch.tensor([[[[1.0, 0.0]]]]), told.append)
    assert redraw(edit, torch.tensor([0.5, 0.0]), noise).flatten().tolist() == [5, 1] and len(told) == 1


def test_the_free_steps_of_flow_edit_are_drawing_again():
    clean, bend = random(1, 4, 4, 4), lambda x, sigma: x.tanh() + sigma
    edit = Edit(clean, LEVELS, bend, bend)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    ours = redraw(edit, from_strength(LEVELS, 0.6), noise)
    assert torch.allclose(flow_edit(edit, FlowEditOptions(strength=0.6, sample_last=1), 3), ours, atol=1e-6)
