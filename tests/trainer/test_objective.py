"""What is minimised, by hand and beside diffusers: noise levels, weights, losses, masks, what is to stay as it was."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_tree
from training import options, samples_in, session_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer import adapter, batches, objective
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.config import ObjectiveOptions
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.session import refuse_misfits
from flux_atelier.trainer.step import _losses, draw_batch


def draw(count=20_000, tokens=1024, **changes):
    chosen = ObjectiveOptions(**{"shift": "none"} | changes)
    return objective.draw_sigma(count, tokens, chosen, torch.Generator().manual_seed(0))


def test_noise_levels_have_the_distributions_that_their_names_say():
    assert draw(sigma_sampler="uniform").mean() == pytest.approx(0.5, abs=0.01)
    logit = torch.logit(draw(sigma_mean=-0.5, sigma_std=1.5))
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((-0.5, 1.5), abs=0.03)
    for sampler in ("uniform", "logit_normal", "mode"):
        drawn = draw(sigma_sampler=sampler)
        assert 0 <= drawn.min() <= drawn.max() <= 1


def test_mode_sampling_is_diffusers(monkeypatch):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "mode", 500, mode_scale=1.29, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(draw(500, sigma_sampler="mode", mode_scale=1.29), theirs, atol=1e-6)


def test_logit_normal_sampling_is_diffusers():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 500, 0.3, 0.8, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(draw(500, sigma_mean=0.3, sigma_std=0.8), theirs, atol=1e-6)


def test_shifts_move_the_median_as_worked_by_hand():
    for kind, tokens, factor in (("none", 4096, 1.0), ("constant", 4096, 3.0), ("resolution", 4096, math.exp(1.15))):
        median = draw(sigma_sampler="uniform", shift=kind, tokens=tokens).median()
        assert median == pytest.approx(factor * 0.5 / (1 + (factor - 1) * 0.5), abs=0.01)


@pytest.mark.parametrize("name", ["cosmap", "sigma_sqrt", "none"])
def test_weights_are_diffusers(name):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigma = torch.linspace(0.05, 0.95, 7)
    assert torch.allclose(objective.loss_weight(sigma, name), compute_loss_weighting_for_sd3(name, sigma))


def test_sigma_squared_is_the_squared_error_of_the_picture():
    x, noise, v = (torch.randn(2, 16, 4, 4) for _ in range(3))
    sigma = torch.tensor([0.2, 0.9])
    noisy = objective.add_noise(x, noise, sigma)
    picture = noisy - sigma.view(-1, 1, 1, 1) * v
    ours = objective.training_error(v, noise - x, sigma, ObjectiveOptions(weighting="sigma_squared"))
    assert torch.allclose(ours, (picture - x).square().flatten(1).mean(1), atol=1e-5)


def test_losses_by_hand():
    v, target, sigma = torch.tensor([3.0, 0.5]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([0.5])
    for loss, by_hand in (("mse", (9 + 0.25) / 2), ("l1", 1.75), ("huber", ((2 * 3 - 1) + 0.25) / 2)):
        chosen = ObjectiveOptions(loss=loss, huber_delta=1.0)
        assert objective.training_error(v, target, sigma, chosen).item() == pytest.approx(by_hand)


def test_no_gradient_comes_from_outside_the_mask_and_size_does_not_matter():
    v = torch.randn(1, 16, 4, 4, requires_grad=True)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = 1
    target, sigma = torch.zeros_like(v), torch.tensor([0.5])
    error = objective.training_error(v, target, sigma, ObjectiveOptions(), mask)
    error.sum().backward()
    assert v.grad[:, :, :2, :2].abs().min() > 0
    assert not v.grad[:, :, 2:].any()
    assert not v.grad[:, :, :, 2:].any()
    assert error.item() == pytest.approx(v[:, :, :2, :2].square().mean().item(), rel=1e-5)
    half = objective.training_error(v, target, sigma, ObjectiveOptions(unmasked_weight=1.0), mask)
    assert half.item() == pytest.approx(v.square().mean().item(), rel=1e-5)


def with_priors(session):
    return [replace(s, priors=("empty",)) for s in session.samples]


def test_keeping_the_prior_pulls_back_only_what_the_adapter_changed(tmp_path):
    session = session_in(tmp_path, options(prior_weight=1.0))
    session.samples = with_priors(session)
    chosen = session.samples[:2]
    (drawn,) = draw_batch(chosen[:1], session, batches.generator(1))
    learnt, kept = (loss.item() for loss in _losses(session, drawn, 1.0))
    assert learnt > 0
    assert kept == 0  # an adapter that does nothing has nothing to be pulled back from
    with torch.no_grad():
        for parameter in session.parameters:
            parameter.add_(0.05)
    (drawn,) = draw_batch(chosen[:1], session, batches.generator(1))
    _, kept = _losses(session, drawn, 1.0)
    assert kept.item() > 0
    kept.backward()
    assert all(p.grad is not None for p in session.parameters)


def test_a_run_that_keeps_the_prior_changes_it_less(tmp_path):
    changes = {}
    for weight in (0.0, 20.0):
        session = session_in(tmp_path / str(weight), options(steps=20, prior_weight=weight, learning_rate=3e-3))
        session.samples = with_priors(session)
        list(train(session))
        states, pooled = session.cache.get("empty")
        given = torch.randn(1, 16, 4, 4, generator=batches.generator(3)), torch.tensor([0.5])
        with torch.no_grad():
            now = session.velocity(*given, states[None].float(), pooled[None])
            with adapter.disabled(session.tree):
                before = session.velocity(*given, states[None].float(), pooled[None])
        changes[weight] = (now - before).square().mean().item()
    assert changes[20.0] < 0.5 * changes[0.0]


def test_regularisation_batches_have_their_share_and_shift_no_others(tmp_path):
    samples = samples_in(Cache(tmp_path), 6)
    mixed = samples[:4] + [replace(s, split="regularisation") for s in samples[4:]]
    mixture = batches.Mixture.of(mixed, 1, 0, 0.25)
    alone = batches.Mixture.of(samples[:4], 1, 0, 0.25)
    dealt = [mixture.batch(i) for i in range(400)]
    regular = [b for b in dealt if b[0] >= 4]
    assert len(regular) == 100
    assert [b for b in dealt if b[0] < 4] == [alone.batch(i) for i in range(300)]
    assert {b[0] for b in regular} == {4, 5}


def test_a_regularisation_set_is_trained_on_without_masks(tmp_path):
    session = session_in(tmp_path, options(steps=4))
    session.samples = [replace(s, split="regularisation") if i < 2 else s for i, s in enumerate(session.samples)]
    assert len(list(train(session))) == 4


def test_masks_and_references_reach_the_loss(tmp_path):
    session = session_in(tmp_path, options())
    cache = session.cache
    cache.put("mask", torch.zeros(4, 4))
    cache.put("control", torch.randn(16, 4, 4))
    sample = replace(session.samples[0], mask="mask", control="control")
    plain_sample = session.samples[2]
    (drawn,) = draw_batch([sample], session, batches.generator(1))
    assert drawn.masks.shape == (1, 4, 4)
    assert drawn.references.shape == (1, 16, 4, 4)
    (loss,) = _losses(session, drawn, 1.0)
    assert loss.item() == 0.0
    (both,) = draw_batch([sample, replace(plain_sample, control="control")], session, batches.generator(1))
    assert both.masks[1].min() == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sigma_sampler": "uniform", "sigma_mean": 0.5},
            "sigma_mean = 0.5 does nothing while sigma_sampler is uniform",
        ),
        ({"shift_factor": 5.0}, "shift_factor = 5.0 does nothing while shift is resolution"),
        ({"huber_delta": 0.2}, "huber_delta"),
        ({"unmasked_weight": 0.2}, "unmasked_weight"),
        ({"lokr_factor": 4}, "lokr_factor"),
        ({"kept_tags": 2}, "kept_tags"),
        ({"result": "best", "validate_every": 0}, "needs a validation loss"),
        ({"weighting": "min_snr"}, "weighting"),
    ],
)
def test_options_that_would_do_nothing_are_errors(changes, words):
    with pytest.raises(AtelierError, match=words):
        options(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": "file"}, "there are no name.mask.png"),
        ({"class_word": "dog"}, "nothing uses it"),
        ({"regularisation_share": 0.3}, "there is no regularisation set"),
    ],
)
def test_options_that_need_other_pictures_are_told(tmp_path, changes, words):
    with pytest.raises(AtelierError, match=words):
        refuse_misfits(samples_in(Cache(tmp_path)), options(**changes))


def test_kontext_sees_the_picture_to_edit_and_gives_one_of_the_noised_size():
    tree = tiny_tree()
    latent, sigma, text = torch.randn(1, 16, 4, 6), torch.tensor([0.5]), torch.randn(1, 5, 48)
    given = latent, sigma, text, torch.randn(1, 24), torch.ones(1)
    other = torch.randn(1, 16, 8, 4)
    out = tree(*given, reference=other)
    assert out.shape == latent.shape
    assert (out - tree(*given)).abs().max() > 1e-3
    assert (out - tree(*given, reference=-other)).abs().max() > 1e-3
