"""What other trainers get wrong without a word: the faulty way is built here, shown to be wrong, and is not ours."""

import pytest
import torch
from tiny import SHAPE, tiny_batch, tiny_tree
from training import options, samples_in, session_in

from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import parse_lora, to_layout
from flux_atelier.core.lora.record import Lora
from flux_atelier.trainer import adapter, batches, objective
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.config import AdapterOptions, ObjectiveOptions
from flux_atelier.trainer.flux import forward as flux
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.step import _losses, draw_batch


def view_with_lora(tree=None):
    view = TrainView(tree or tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))
    parameters = adapter.inject(view, AdapterOptions(rank=4), 0)
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return view, parameters


def gradient(loss, parameters) -> torch.Tensor:
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return found


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_captions_of_a_batch_are_not_mixed(tmp_path):
    """Every picture against the mean prediction over all captions of its batch is another loss."""
    session = session_in(tmp_path, options(caption_dropout=0.0))
    chosen = [session.samples[0], session.samples[2]]
    (draw,) = draw_batch(chosen, session, batches.generator(0))
    noisy, wanted = objective.add_noise(draw.latents, draw.noise, draw.sigma), draw.noise - draw.latents
    with torch.no_grad():
        ours = sum(loss.item() for loss in _losses(session, draw, 0.5))
        each = []
        for i in range(2):
            one = slice(i, i + 1)
            v = session.velocity(noisy[one], draw.sigma[one], draw.texts[one], draw.pooled[one])
            each.append(objective.velocity_error(v, draw.latents[one], draw.noise[one]))
        mixed = sum(session.velocity(noisy, draw.sigma, draw.texts[[i, i]], draw.pooled[[i, i]]) for i in range(2)) / 2
        faulty = (mixed - wanted).square().mean().item()
    assert ours == pytest.approx(torch.cat(each).mean().item(), rel=1e-5)
    assert abs(ours - faulty) > 1e-3


def inplace_double(block, image, words, vector, turn):
    """The block as it is written for inference: residuals added in place."""
    out_image, out_words = flux.double_block(block, image.clone(), words.clone(), vector, turn)
    image.data.copy_(out_image)  # as under inference, where nobody counts versions
    words.data.copy_(out_words)
    return out_image, out_words


def test_gradients_survive_checkpointing_where_in_place_adds_do_not():
    """In-place residuals overwrite what checkpointing computes again from."""
    latent, noise, sigma, text, pooled, guidance = tiny_batch()

    def loss_of(view, checkpointed):
        velocity = view(latent, sigma, text, pooled, guidance, checkpointed)
        return (velocity - (noise - latent)).square().mean()

    everything = flux.plan_checkpoints(2, 2, 1.0)
    view, parameters = view_with_lora()
    right = gradient(loss_of(view, ()), parameters)
    assert torch.equal(gradient(loss_of(view, everything), parameters), right)
    view.block_functions = inplace_double, flux.single_block
    assert apart(gradient(loss_of(view, everything), parameters), right) > 0.01


def test_latents_in_buckets_are_scaled_like_all_others(tmp_path):
    """Latents of buckets that skip the model's scale are fed three times too large."""
    from PIL import Image
    from test_cache import CountingEncoder

    from flux_atelier.core.dataset.record import Dataset, Row
    from flux_atelier.trainer.cache import encode
    from flux_atelier.trainer.config import DataOptions

    rows = []
    for i, size in enumerate(((64, 64), (96, 64))):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"{i}.png")
        rows.append(Row(str(i), f"{i}.png", str(i), *size))
    scaled, cache = [], Cache(tmp_path / "cache")

    class Scaling(CountingEncoder):
        def encode_pixels(self, pixels):
            raw = super().encode_pixels(pixels)
            return (raw - 0.1159) * 0.3611

    for item in encode(Dataset(str(tmp_path), tuple(rows)), Scaling(), DataOptions(resolution=64, trigger="t"), cache):
        scaled.append(cache.get(item.sample.latent)[0].std().item())
    assert scaled[0] == pytest.approx(scaled[1], rel=0.05)
    raw = CountingEncoder().encode_pixels(
        torch.tensor([200, 100, 50]).view(1, 3, 1, 1).expand(1, 3, 64, 64) / 127.5 - 1
    )
    assert raw.std() / scaled[0] == pytest.approx(1 / 0.3611, rel=0.05)


def test_alpha_is_not_lost_on_the_way():
    """A file's alpha read as 1 makes a LoRA of alpha 16 a sixteenth as strong."""
    factors = Factors(torch.randn(768, 4), torch.randn(4, 256), 16.0)
    state = to_layout(Lora({"double_blocks.0.img_attn.qkv": factors}, "kohya"), "kohya", torch.float32)
    view = TrainView(tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))
    adapter.inject(view, AdapterOptions(rank=4, alpha=2.0), 0)
    adapter.start_from(view, parse_lora(state, {}, "a").modules)
    kept = adapter.layers(view)["double_blocks.0.img_attn.qkv"].delta()
    assert apart(kept, factors.delta()) < 1e-6
    assert apart(Factors(factors.up, factors.down, 1.0).delta(), factors.delta()) > 0.9


def test_latents_are_found_by_picture_and_never_by_step(tmp_path):
    """A cache indexed by the step, beside a shuffled order, pairs latents with other pictures' captions."""
    samples = samples_in(Cache(tmp_path), 5)
    plan = batches.Plan.of(samples, 1, 0)
    order = [plan.batch(i)[0] for i in range(5)]
    by_step = [samples[i].latent for i in range(5)]
    assert [samples[i].latent.replace("latent", "text") for i in order] == [samples[i].texts[0] for i in order]
    assert by_step != [samples[i].latent for i in order]


def test_guidance_is_one_in_training(tmp_path):
    """Models distilled with guidance answer otherwise at 3.5, so what is learnt there is for 3.5."""
    session = session_in(tmp_path, options())
    asked = []
    session.tree.forward = lambda *args: asked.append(args[4]) or args[0]
    session.velocity(torch.zeros(2, 16, 4, 4), torch.ones(2), torch.zeros(2, 3, 48), torch.zeros(2, 24))
    assert asked[0].tolist() == [1.0, 1.0]


def test_a_weighting_acts_in_velocity_space():
    """A weighting that is read but only used with another prediction type changes nothing."""
    v, target, sigma = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.8])
    plain = objective.training_error(v, target, sigma, ObjectiveOptions())
    for name in ("cosmap", "sigma_sqrt", "sigma_squared"):
        assert apart(objective.training_error(v, target, sigma, ObjectiveOptions(weighting=name)), plain) > 0.05


def test_a_loss_that_is_not_finite_is_no_zero(tmp_path):
    """A non-finite loss replaced by zero goes on as if nothing were; here the step is skipped and told."""
    session = session_in(tmp_path, options(steps=2))
    session.parameters[0].register_hook(lambda grad: grad * float("nan"))
    steps = list(train(session))
    assert all(step.skipped and "skipped" in step.note for step in steps)
    assert not any(v.isnan().any() for v in adapter.state(session.tree).values())


def test_the_model_is_told_the_very_noise_level_of_its_input():
    """A noise level rounded to bfloat16 tells the model a time up to 0.4 % off."""
    sigma = torch.tensor([0.7031 + 0.0011])
    exact, rounded = flux.sinusoid(sigma), flux.sinusoid(sigma.bfloat16().float())
    assert apart(rounded, exact) > 1e-2
    view, _ = view_with_lora()
    latent, _, _, text, pooled, guidance = tiny_batch(1)
    given = []
    keep = flux.sinusoid
    try:
        flux.sinusoid = lambda t, width=256: given.append(t) or keep(t, width)
        with torch.autocast("cpu", torch.bfloat16):
            view(latent, sigma, text, pooled, guidance)
    finally:
        flux.sinusoid = keep
    assert torch.equal(given[0], sigma)


def test_the_frozen_model_gets_no_gradients_and_backward_costs_no_more_than_forward():
    """A trainer that forms W + B A learns dense gradients it throws away."""
    from torch.utils.flop_counter import FlopCounterMode

    view, parameters = view_with_lora()
    latent, _, sigma, text, pooled, guidance = tiny_batch(1, size=(16, 16), words=32)
    with FlopCounterMode(display=False) as counter:
        loss = view(latent, sigma, text, pooled, guidance).square().mean()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() / forward < 1.1
    trained = {id(p) for p in parameters}
    assert all(p.grad is None for p in view.parameters() if id(p) not in trained)
