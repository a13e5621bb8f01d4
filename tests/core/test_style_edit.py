"""FlowEdit and RF-inversion: by hand on fields with known solutions, by law, and on nano-flux with the training forward."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from flux_atelier.core.style.edit import (
    Edit,
    FlowEditOptions,
    InversionOptions,
    drawn_to,
    flow_edit,
    follow,
    invert,
    invert_and_edit,
)
from flux_atelier.trainer.nano import judge, scenes
from flux_atelier.trainer.sampling import euler, sigma_schedule

FALLING = torch.linspace(1, 0, 9)


def towards(point):
    """The velocity of a model that knows one picture."""
    return lambda x, sigma: (x - point) / sigma


def bent(seed: int):
    """A smooth field without a simple solution."""
    turn = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) / 4
    return lambda x, sigma: torch.einsum("ij,bjhw->bihw", turn, x).tanh() + sigma


def latent(count=2, seed=1):
    return torch.randn(count, 16, 6, 4, generator=torch.Generator().manual_seed(seed))


def test_between_two_known_pictures_flow_edit_is_exact():
    """Both fields lead to one point: the difference of velocities is (z - target) / sigma, which Euler solves exactly."""
    clean, wanted = latent(), latent(seed=2)
    edited = flow_edit(Edit(clean, FALLING, towards(clean), towards(wanted)), FlowEditOptions(strength=1), 0)
    assert torch.allclose(edited, wanted, atol=1e-4)


def test_flow_edit_stopped_early_goes_a_part_of_the_way():
    """Euler on (z - target) / sigma keeps the rest in proportion to sigma: from 1 to 0.25 three quarters are done."""
    clean, wanted, levels = latent(), latent(seed=2), torch.tensor([1.0, 0.5, 0.25])
    edited = flow_edit(Edit(clean, levels, towards(clean), towards(wanted)), FlowEditOptions(strength=1), 0)
    assert torch.allclose(edited, torch.lerp(clean, wanted, 0.75), atol=1e-4)


@pytest.mark.parametrize("options", [FlowEditOptions(), FlowEditOptions(strength=1, averages=3)])
def test_equal_texts_give_the_picture_back(options):
    clean = latent()
    assert torch.equal(flow_edit(Edit(clean, FALLING, bent(1), bent(1)), options, 0), clean)


def test_strength_zero_gives_the_picture_and_asks_nothing():
    def never(x, sigma):
        raise AssertionError

    clean = latent()
    edit = Edit(clean, FALLING, never, never)
    assert torch.equal(flow_edit(edit, FlowEditOptions(strength=0), 0), clean)
    assert torch.equal(invert_and_edit(edit, InversionOptions(strength=0), latent(seed=9)), clean)


def test_reruns_are_bit_identical_and_leave_the_global_generator_alone():
    edit, options = Edit(latent(), FALLING, bent(1), bent(2)), FlowEditOptions(averages=2, sample_last=0.25)
    before = torch.random.get_rng_state()
    first = flow_edit(edit, options, 5)
    torch.randn(7)
    assert torch.equal(first, flow_edit(edit, options, 5))
    assert not torch.equal(first, flow_edit(edit, options, 6))
    torch.random.set_rng_state(before)
    flow_edit(edit, options, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_picture_is_edited_the_same_alone_and_in_a_batch():
    clean, options = latent(3), FlowEditOptions(sample_last=0.25)
    whole = flow_edit(Edit(clean, FALLING, bent(1), bent(2)), options, 5)
    alone = flow_edit(Edit(clean[1:2], FALLING, bent(1), bent(2)), options, 5)
    assert torch.allclose(whole[1:2], alone, atol=1e-6)


def test_arguments_are_not_written_to():
    clean, levels = latent(), FALLING.clone()
    kept = clean.clone()
    flow_edit(Edit(clean, levels, bent(1), bent(2)), FlowEditOptions(), 5)
    invert_and_edit(Edit(clean, levels, bent(1), bent(2)), InversionOptions(), latent(seed=4))
    assert torch.equal(clean, kept) and torch.equal(levels, FALLING)


def test_all_steps_sampled_freely_are_the_targets_own_picture():
    """With strength 1 and every step free, FlowEdit is plain sampling from its noise."""
    clean = latent(1)
    edited = flow_edit(Edit(clean, FALLING, bent(1), bent(2)), FlowEditOptions(strength=1, sample_last=1), 5)
    noise = torch.randn(1, *clean.shape[1:], generator=torch.Generator().manual_seed(5))
    assert torch.allclose(edited, follow(bent(2), noise, FALLING), atol=1e-5)


@pytest.mark.parametrize("options", [FlowEditOptions(), FlowEditOptions(sample_last=0.4), InversionOptions()])
def test_outside_the_mask_the_picture_stays(options):
    clean, where = latent(), torch.zeros(2, 1, 6, 4)
    where[..., :2] = 1
    edit = Edit(clean, FALLING, bent(1), bent(2), where)
    if isinstance(options, FlowEditOptions):
        edited = flow_edit(edit, options, 5)
    else:
        edited = invert_and_edit(edit, options, latent(seed=3))
    assert (edited - clean)[..., 2:].abs().max() <= 1e-5
    assert (edited - clean)[..., :2].abs().mean() > 0.01


def test_every_step_is_reported():
    told = []
    edit = Edit(latent(), FALLING, bent(1), bent(2), report=told.append)
    edited = flow_edit(edit, FlowEditOptions(strength=1, sample_last=0.25), 0)
    assert len(told) == 8 and torch.equal(told[-1], edited)
    told.clear()
    edited = invert_and_edit(edit, InversionOptions(), latent(seed=3))
    assert len(told) == 16 and torch.equal(told[-1], edited)


def test_solvers_by_hand():
    """On dx / dsigma = x a step of h multiplies by 1 + h (Euler) and by 1 + h + h^2 / 2 (midpoint)."""
    one, levels = torch.ones(1, 1, 1, 1), torch.linspace(0, 1, 5)
    grow = lambda x, sigma: x  # noqa: E731
    assert follow(grow, one, levels).item() == pytest.approx(1.25**4)
    assert follow(grow, one, levels, "midpoint").item() == pytest.approx(1.28125**4)


def test_following_is_the_trainers_euler():
    noise = latent()
    levels = sigma_schedule(10, 6)
    theirs = euler(lambda x, s, *_: bent(3)(x, s[0].item()), noise, noise, noise, 10)
    assert torch.allclose(follow(bent(3), noise, levels), theirs, atol=1e-6)


def test_the_line_alone_arrives():
    """Drawn fully to the noise the inversion is the noise; drawn fully to the picture the way back is the picture."""
    clean, noise = latent(), latent(seed=3)
    edit = Edit(clean, FALLING, bent(1), bent(2))
    for solver in ("euler", "midpoint"):
        there = invert(edit, FALLING, noise, InversionOptions(gamma=1, solver=solver))
        assert torch.allclose(there, noise, atol=1e-4)
        whole = InversionOptions(eta=1, eta_from=0, eta_to=1, solver=solver)
        assert torch.allclose(invert_and_edit(edit, whole, noise), clean, atol=1e-5)


def test_a_controlled_velocity_by_hand():
    """At sigma 0.5, 2 on the way to 0 is a slope of 4; the field says 1; a quarter of the line gives 1.75."""
    mixed = drawn_to(lambda x, sigma: torch.ones_like(x), torch.zeros(1, 1, 1, 1), 0.0, 0.25)
    assert mixed(torch.full((1, 1, 1, 1), 2.0), 0.5).item() == pytest.approx(1.75)


def test_eta_holds_only_in_its_window():
    clean, noise = latent(), latent(seed=3)
    edit = Edit(clean, FALLING, bent(1), bent(2))
    far = [
        (invert_and_edit(edit, InversionOptions(eta=0.9, eta_to=end, gamma=0), noise) - clean).norm().item()
        for end in (0.0, 0.5, 1.0)
    ]
    free = invert_and_edit(edit, InversionOptions(eta=0, gamma=0), noise)
    assert far[0] == pytest.approx((free - clean).norm().item())
    assert far[0] > far[1] > far[2]


# On nano-flux, through the trainer's own forward and without ComfyUI.

SOURCE = [
    scenes.Scene("circle", "red", "large", "in the center", "plain", "blue"),
    scenes.Scene("square", "green", "large", "on the left", "striped", "white"),
    scenes.Scene("cross", "yellow", "large", "on the right", "plain", "black"),
    scenes.Scene("ring", "white", "large", "in the center", "dotted", "purple"),
]
OTHER = {"color": ["green", "purple", "blue", "red"], "shape": ["square", "circle", "circle", "cross"]}


@cache
def painter():
    from flux_atelier.trainer.draw import Painter
    from flux_atelier.trainer.models import nano
    from flux_atelier.trainer.nano import measure

    return Painter(nano(), measure.encoder())


def nano_velocity(chosen):
    texts = [painter().encoder.encode_text(s.caption) for s in chosen]
    states, pooled = (torch.stack([t[k] for t in texts]) for k in (0, 1))
    field = painter()._velocity(3.5)

    def velocity(x, sigma):
        with torch.no_grad():
            return field(x, torch.full((len(x),), sigma), states, pooled)

    return velocity


@cache
def nano_source():
    pictures = scenes.draw(SOURCE, 3)
    return pictures, painter().encoder.encode_pixels(pictures * 2 - 1)


@pytest.mark.parametrize("what", ["color", "shape"])
@pytest.mark.parametrize(
    "options", [FlowEditOptions(), InversionOptions(gamma=0, eta=0.6, eta_to=0.3)], ids=["flow_edit", "inversion"]
)
def test_another_text_changes_the_named_thing_and_leaves_the_rest(what, options):
    _, clean = nano_source()
    target = [replace(scene, **{what: word}) for scene, word in zip(SOURCE, OTHER[what], strict=True)]
    edit = Edit(clean, sigma_schedule(16, 16), nano_velocity(SOURCE), nano_velocity(target))
    if isinstance(options, FlowEditOptions):
        edited = flow_edit(edit, options, 0)
    else:
        edited = invert_and_edit(edit, options, torch.zeros_like(clean))
    seen = painter().encoder.decode(edited)
    assert [judge.read_scene(p) for p in seen] == [(s.shape, s.color, s.background) for s in target]
    known = painter().encoder.decode(clean)  # what the VAE alone makes of it
    change = (seen - known).abs().mean(1)
    edge, middle = change[:, 1:5, 1:].mean(), change[:, 20:44, 20:44].mean()
    assert edge <= 0.03 and middle >= 3 * edge


def test_more_strength_changes_more():
    _, clean = nano_source()
    target = [replace(s, color=c) for s, c in zip(SOURCE, OTHER["color"], strict=True)]
    edit = Edit(clean, sigma_schedule(8, 16), nano_velocity(SOURCE), nano_velocity(target))
    far = [(flow_edit(edit, FlowEditOptions(strength=s), 0) - clean).norm().item() for s in (0.2, 0.35, 0.5, 0.8)]
    assert 0 < far[0] < far[1] < far[2] < far[3]


def test_midpoint_inverts_at_least_twice_as_well_as_euler():
    _, clean = nano_source()
    velocity, levels, missed = nano_velocity(SOURCE), sigma_schedule(25, 16), {}
    for solver in ("euler", "midpoint"):
        options = InversionOptions(gamma=0, eta=0, solver=solver)
        back = invert_and_edit(Edit(clean, levels, velocity, velocity), options, clean)
        missed[solver] = ((back - clean).norm() / clean.norm()).item()
    assert missed["midpoint"] <= missed["euler"] / 2
    assert missed["midpoint"] <= 0.01
