"""Editing, layout and style in the real ComfyUI: through SamplerCustomAdvanced, on nano-flux, the model left as it was."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from test_host import float32_model
from test_style_edit import nano_velocity

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.style.edit import Edit, FlowEditOptions, flow_edit
from flux_atelier.nodes import host
from flux_atelier.trainer.nano import judge, scenes

RED = scenes.Scene("circle", "red", "large", "in the center", "plain", "blue")
GREEN = scenes.Scene("circle", "green", "large", "in the center", "plain", "blue")
NOT_THIS = scenes.Scene("cross", "white", "small", "at the top", "plain", "black")
OTHER = scenes.Scene("square", "yellow", "large", "on the left", "striped", "white")
FLOW = dict(strength=0.85, sample_last=0.0, averages=1)
INVERSION = dict(strength=1.0, gamma=0.5, eta=0.9, eta_from=0.0, eta_to=0.25, solver="midpoint")
STYLE = dict(strength=0.8, statistics=True, blocks="all", sigma_from=1.0, sigma_to=0.0)
STRUCTURE = dict(amount=0.8, until=0.3, radius=16.0, free_palette=True)


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes(monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def source(nano):
    """The red circle as a latent."""
    with torch.inference_mode():
        return nano[2].encode(scenes.draw([RED], 3).permute(0, 2, 3, 1))


@pytest.fixture(scope="module")
def painted(nano):
    """Another scene in the painterly hand, as a latent."""
    picture = scenes.paint(scenes.draw([OTHER], 5)[0], 1)
    with torch.inference_mode():
        return nano[2].encode(picture[None].permute(0, 2, 3, 1))


def node(name: str, *args, **options):
    from flux_atelier.nodes import editing

    return getattr(editing, name).execute(*args, **options).args[0]


def text(nano, scene, **more):
    """A scene's caption as CONDITIONING, with more keys."""
    return [[states, extra | more] for states, extra in host.condition(nano[1], scene.caption, 3.5)]


def sigmas(model, steps=8):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def custom(guider, sampler, latent, levels, seed=3, **more):
    """SamplerCustomAdvanced as a graph runs it."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    given = {"samples": latent} | more
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, levels, given).args[0]["samples"]


def edited(nano, latent, sampler, source=RED, target=GREEN, model=None, steps=8, **more):
    model = model or nano[0]
    guider = node("EditGuider", model, text(nano, source), text(nano, target))
    return custom(guider, sampler, latent, sigmas(model, steps), **more)


def drawn(model, nano, scene=RED, count=1, cfg=1.0, steps=4, **more):
    """Plain sampling, with a negative text where there is guidance."""
    empty = torch.zeros(count, 16, 8, 8)
    noise = comfy.sample.prepare_noise(empty, 4)
    texts = text(nano, scene, **more), text(nano, NOT_THIS)
    return comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", *texts, empty, disable_pbar=True, seed=4)


def redux_mask():
    """A bias against the last text tokens, as StyleModelApply writes it: text, then one row for the picture."""
    return torch.zeros(1, 17, 17).index_fill(2, torch.tensor([14, 15]), -1.0)


def far(a, b) -> float:
    return (a - b).abs().max().item()


def test_flow_edit_changes_the_named_thing_and_leaves_the_rest(nano, source):
    levels = 12
    seen = nano[2].decode(edited(nano, source, node("FlowEditSampler", **FLOW), steps=levels))[0].permute(2, 0, 1)
    assert judge.read_scene(seen) == ("circle", "green", "blue")
    change = (seen - nano[2].decode(source)[0].permute(2, 0, 1)).abs().mean(0)
    assert change[1:5].mean() <= 0.03 and change[20:44, 20:44].mean() >= 0.1


def test_rf_inversion_changes_the_named_thing(nano, source):
    seen = nano[2].decode(edited(nano, source, node("RFInversionSampler", **INVERSION), steps=12))[0]
    assert judge.read_scene(seen.permute(2, 0, 1)) == ("circle", "green", "blue")


def test_equal_texts_and_no_strength_give_the_source(nano, source):
    same = edited(nano, source, node("FlowEditSampler", **FLOW), target=RED)
    assert (same - source).norm() <= 1e-5 * source.norm()
    for name, options in (("FlowEditSampler", FLOW), ("RFInversionSampler", INVERSION)):
        nothing = edited(nano, source, node(name, **options | {"strength": 0.0}))
        assert (nothing - source).norm() <= 1e-6 * source.norm()
    held = edited(nano, source, node("RFInversionSampler", **INVERSION | {"eta": 1.0, "eta_to": 1.0}))
    assert (held - source).norm() <= 1e-4 * source.norm()


@pytest.mark.parametrize(("name", "options"), [("FlowEditSampler", FLOW), ("RFInversionSampler", INVERSION)])
def test_reruns_are_bit_identical_and_follow_the_seed(nano, source, name, options):
    sampler = node(name, **options)
    first = edited(nano, source, sampler)
    torch.randn(5)
    assert torch.equal(first, edited(nano, source, sampler))
    assert not torch.equal(first, edited(nano, source, sampler, seed=9))


def test_the_guider_follows_the_same_lines_as_a_bare_velocity(nano, source):
    """Beside flow_edit over the trainer's forward, without ComfyUI's sampling, both in float32."""
    model = float32_model()
    theirs = edited(nano, source, node("FlowEditSampler", **FLOW), model=model, seed=11)
    with torch.inference_mode(False):
        clean = model.model.process_latent_in(source.clone())
        edit = Edit(clean, sigmas(model), nano_velocity([RED]), nano_velocity([GREEN]))
        ours = model.model.process_latent_out(flow_edit(edit, FlowEditOptions(**FLOW), 11))
    assert (ours - theirs).norm() <= 0.02 * (ours - source).norm()


def test_midpoint_inverts_at_least_twice_as_well_as_euler(nano, source):
    missed = {}
    for solver in ("euler", "midpoint"):
        sampler = node("RFInversionSampler", **INVERSION | {"gamma": 0.0, "eta": 0.0, "solver": solver})
        missed[solver] = (edited(nano, source, sampler, target=RED, steps=25) - source).norm().item()
    assert missed["midpoint"] <= missed["euler"] / 2


def test_a_noise_mask_keeps_the_rest(nano, source):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    for name, options in (("FlowEditSampler", FLOW), ("RFInversionSampler", INVERSION)):
        change = edited(nano, source, node(name, **options), noise_mask=mask) - source
        assert change[..., 5:].abs().max() <= 1e-5 and change[..., :3].abs().max() > 0.1


def test_a_guider_with_one_text_is_told(nano, source):
    guider = comfy.samplers.CFGGuider(nano[0])
    guider.set_conds(text(nano, RED), text(nano, RED))
    with pytest.raises(AtelierError, match=r"CFGGuider has one\. Connect an Edit Guider"):
        custom(guider, node("FlowEditSampler", **FLOW), source, sigmas(nano[0]))


def test_empty_noise_is_told(nano, source):
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, SamplerCustomAdvanced

    guider = node("EditGuider", nano[0], text(nano, RED), text(nano, GREEN))
    given = Noise_EmptyNoise(), guider, node("RFInversionSampler", **INVERSION), sigmas(nano[0]), {"samples": source}
    with pytest.raises(AtelierError, match="the noise is empty"):
        SamplerCustomAdvanced.execute(*given)


def test_a_model_that_is_no_flow_model_is_told(nano):
    import comfy.model_sampling

    model = nano[0].clone()
    model.add_object_patch("model_sampling", comfy.model_sampling.ModelSamplingDiscrete())
    with pytest.raises(AtelierError, match="Load a Flux model"):
        node("EditGuider", model, text(nano, RED), text(nano, GREEN))


def test_a_cancel_stops_an_edit_at_once(nano, source):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        edited(nano, source, node("FlowEditSampler", **FLOW))
    assert edited(nano, source, node("FlowEditSampler", **FLOW)).isfinite().all()


def test_the_model_is_as_it_was_after_every_node(nano, source, painted):
    """Plain pictures and Kontext's references have the same bytes before and after."""
    model = nano[0]
    kinds = ({}, {"reference_latents": [source]})
    before = [drawn(model, nano, **more) for more in kinds]
    options = {name: str(model.model_options[name]) for name in model.model_options}
    edited(nano, source, node("FlowEditSampler", **FLOW))
    edited(nano, source, node("RFInversionSampler", **INVERSION))
    styled = node("StyleReference", model, {"samples": painted}, **STYLE)
    kept = node("KeepStructure", styled, {"samples": source}, **STRUCTURE)
    changed = [drawn(kept, nano, cfg=2.0), drawn(kept, nano, **kinds[1])]
    edited(nano, source, node("FlowEditSampler", **FLOW), model=kept)
    assert all(torch.equal(a, drawn(model, nano, **more)) for a, more in zip(before, kinds, strict=True))
    assert {name: str(model.model_options[name]) for name in model.model_options} == options
    assert not model.wrappers and far(changed[1], before[1]) > 0.1 and far(before[0], before[1]) > 0.01


def test_structure_is_kept_as_far_as_it_is_asked(nano, painted):
    off = node("KeepStructure", nano[0], {"samples": painted}, **STRUCTURE | {"amount": 0.0})
    plain = drawn(nano[0], nano)
    assert torch.equal(drawn(off, nano), plain)
    near = [
        torch.nn.functional.cosine_similarity(
            drawn(node("KeepStructure", nano[0], {"samples": painted}, **STRUCTURE | options), nano).flatten(),
            painted.flatten(),
            dim=0,
        )
        for options in ({"amount": a, "free_palette": False, "until": 0.0, "radius": 8.0} for a in (0.0, 0.5, 1.0))
    ]
    assert near[0] < near[1] < near[2]


def test_layouts_are_as_many_as_pictures(nano, painted):
    guided = node("KeepStructure", nano[0], {"samples": painted.repeat(2, 1, 1, 1)}, **STRUCTURE)
    assert drawn(guided, nano, count=2, steps=1).shape == (2, 16, 8, 8)
    with pytest.raises(AtelierError, match="2 latents whose layout is kept, for 3 pictures"):
        drawn(guided, nano, count=3, steps=1)


def test_latents_of_another_model_are_told(nano):
    alien = {"samples": torch.zeros(1, 4, 8, 8)}
    for name, options in (("KeepStructure", STRUCTURE), ("StyleReference", STYLE)):
        with pytest.raises(AtelierError, match="4 channels and the MODEL 16"):
            node(name, nano[0], alien, **options)
