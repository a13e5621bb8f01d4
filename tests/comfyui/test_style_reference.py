"""Style by shared attention in the real ComfyUI on nano-flux: references, batches, CFG, masks, and what stays as it was."""

import itertools

import comfy.sample
import pytest
import torch
from test_editing import (
    FLOW,
    NOT_THIS,
    RED,
    STYLE,
    drawn,
    edited,
    far,
    node,
    redux_mask,
    text,
)
from test_editing import as_comfyui_runs_nodes as as_comfyui_runs_nodes
from test_editing import painted as painted
from test_editing import source as source

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.nano import judge, scenes


def test_of_a_black_mask_nothing_is_taken(nano, painted):
    assert node("StyleReference", nano[0], {"samples": painted}, None, torch.zeros(1, 64, 64), **STYLE) is nano[0]


def test_no_strength_is_no_patch(nano, painted):
    assert node("StyleReference", nano[0], {"samples": painted}, **STYLE | {"strength": 0.0}) is nano[0]


def moments(latent):
    return torch.cat((latent.mean((2, 3)), latent.std((2, 3))), 1)


SHOWN = (
    RED,
    scenes.Scene("cross", "white", "large", "on the left", "plain", "purple"),
    scenes.Scene("triangle", "blue", "large", "in the center", "plain", "orange"),
)


@pytest.mark.parametrize("kind", ["plain", "guided and masked"])
@pytest.mark.parametrize("scene", SHOWN, ids=lambda s: s.shape)
def test_style_comes_nearer_with_strength(nano, painted, kind, scene):
    """With CFG, a mask and an attention mask as Redux sets one, as without."""
    cfg, more, mask = 1.0, {}, None
    if kind != "plain":
        cfg, mask = 1.5, torch.ones(1, 64, 64)
        more = dict(attention_mask=redux_mask(), attention_mask_img_shape=(1, 1))
    distance = []
    for strength in (0.0, 0.2, 0.5, 1.0):
        model = node("StyleReference", nano[0], {"samples": painted}, mask, None, **STYLE | {"strength": strength})
        distance.append((moments(drawn(model, nano, scene, cfg=cfg, steps=6, **more)) - moments(painted)).norm().item())
    assert all(b < a for a, b in itertools.pairwise(distance)) and distance[-1] < 0.985 * distance[0]


def test_the_content_stays_under_a_style(nano, painted):
    model = node("StyleReference", nano[0], {"samples": painted}, **STYLE)
    seen = [nano[2].decode(drawn(model, nano, scene, steps=8))[0].permute(2, 0, 1) for scene in SHOWN]
    assert [judge.read_scene(p)[0] for p in seen] == [s.shape for s in SHOWN]


def test_a_batch_comes_nearer_to_its_first_picture_with_strength(nano):
    distance = []
    for strength in (0.0, 0.2, 0.5, 1.0):
        model = node("StyleReference", nano[0], **STYLE | {"strength": strength})
        first, *others = moments(drawn(model, nano, count=4))
        distance.append(sum((other - first).norm().item() for other in others))
    assert all(b < a for a, b in itertools.pairwise(distance))


def test_only_the_target_of_an_edit_takes_a_style(nano, source, painted):
    """The source's velocity is as without: an edit with equal texts moves towards the style."""
    model = node("StyleReference", nano[0], {"samples": painted}, **STYLE)
    styled = edited(nano, source, node("FlowEditSampler", **FLOW), target=RED, model=model)
    assert (moments(styled) - moments(painted)).norm() < (moments(source) - moments(painted)).norm() - 0.02


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batchs_first_picture_is_the_reference_and_stays(nano, cfg, masked):
    mask = torch.zeros(1, 64, 64)
    mask[..., 20:] = 1
    more = dict(attention_mask=redux_mask(), attention_mask_img_shape=(1, 1)) if masked else {}
    model = node("StyleReference", nano[0], None, mask if masked else None, None, **STYLE)
    plain, shared = (drawn(m, nano, count=3, cfg=cfg, **more) for m in (nano[0], model))
    assert far(plain[0], shared[0]) <= 1e-5
    assert far(plain[1], shared[1]) > 0.05 and far(plain[2], shared[2]) > 0.05
    alone = drawn(model, nano, count=1, cfg=cfg, **more)
    assert torch.equal(alone, drawn(nano[0], nano, count=1, cfg=cfg, **more))


def test_a_picture_is_styled_the_same_alone_in_a_batch_and_in_halves(nano, painted, monkeypatch):
    """References are rows behind the pictures: neither neighbours nor CFG in one or two calls matter."""
    model = node("StyleReference", nano[0], {"samples": painted}, **STYLE)
    together = drawn(model, nano, count=2, cfg=2.0)
    empty = torch.zeros(2, 16, 8, 8)
    noise = comfy.sample.prepare_noise(empty, 4)[1:]
    texts = text(nano, RED), text(nano, NOT_THIS)
    alone = comfy.sample.sample(
        model, noise, 4, 2.0, "euler", "simple", *texts, empty[1:], disable_pbar=True, seed=4
    )  # fmt: skip
    assert far(together[1:], alone) <= 1e-4
    monkeypatch.setattr(type(nano[0].model), "memory_required", lambda *_, **__: 1e30)
    assert far(drawn(model, nano, count=2, cfg=2.0), together) <= 1e-4


def test_many_references_of_other_sizes_and_chained_nodes(nano, painted):
    large = torch.nn.functional.interpolate(painted, (12, 20), mode="bilinear")
    several = torch.cat((painted, painted.roll(3, -1)))
    one = drawn(node("StyleReference", nano[0], {"samples": painted}, **STYLE), nano)
    two = drawn(node("StyleReference", nano[0], {"samples": several}, **STYLE), nano)
    other = drawn(node("StyleReference", nano[0], {"samples": large}, **STYLE), nano)
    first = node("StyleReference", nano[0], {"samples": painted}, **STYLE | {"strength": 0.3})
    chained = drawn(node("StyleReference", first, {"samples": large}, **STYLE | {"strength": 0.3}), nano)
    batch = drawn(node("StyleReference", first, **STYLE), nano, count=2)
    for found in (two, other, chained):
        assert found.isfinite().all() and far(found, one) > 1e-3
    assert far(batch[:1], drawn(first, nano, count=2)[:1]) <= 1e-5


def test_windows_and_blocks_without_a_match_change_nothing(nano, painted):
    plain = drawn(nano[0], nano)
    never = node("StyleReference", nano[0], {"samples": painted}, **STYLE | {"sigma_from": 0.01, "sigma_to": 0.005})
    assert torch.equal(drawn(never, nano), plain)
    nowhere = node("StyleReference", nano[0], {"samples": painted}, **STYLE | {"blocks": "double 7, single 40-50"})
    assert far(drawn(nowhere, nano), plain) <= 1e-5
    parts = [
        drawn(node("StyleReference", nano[0], {"samples": painted}, **STYLE | {"blocks": b}), nano)
        for b in ("double", "single 1-2", "all")
    ]
    assert far(parts[0], plain) > 0.01 and far(parts[1], plain) > 0.01 and far(parts[0], parts[2]) > 0.01


def test_masks_choose_where_and_what(nano, painted):
    black, white = torch.zeros(1, 64, 64), torch.ones(1, 64, 64)
    styles = {
        name: drawn(node("StyleReference", nano[0], {"samples": painted}, mask, seen, **STYLE), nano)
        for name, mask, seen in (
            ("open", None, None),
            ("white", white, white),
            ("black", black, None),
            ("half", torch.cat((white[..., :32], black[..., :32]), -1), None),
        )
    }
    assert far(styles["open"], styles["white"]) <= 1e-4
    assert far(styles["black"], drawn(nano[0], nano)) <= 1e-5
    assert far(styles["half"], styles["open"]) > 0.01
    hidden = node("StyleReference", nano[0], {"samples": painted}, None, black, **STYLE | {"statistics": False})
    assert far(drawn(hidden, nano), drawn(nano[0], nano)) <= 1e-5


def test_kontext_references_and_controls_pass_with_a_style(nano, source, painted):
    model = node("StyleReference", nano[0], {"samples": painted}, **STYLE)
    found = drawn(model, nano, reference_latents=[source], cfg=2.0)
    assert found.isfinite().all() and far(found, drawn(model, nano, cfg=2.0)) > 1e-3
    inner = nano[0].model.diffusion_model
    zero = {
        "input": [torch.zeros(1, 16, inner.hidden_size), None],
        "output": [None, torch.randn(1, 16, inner.hidden_size)],
    }
    given = dict(context=torch.randn(1, 16, 128), y=torch.randn(1, 64), guidance=torch.tensor([3.5]))
    x, level = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
    options = model.model_options["transformer_options"] | {"sigmas": level, "cond_or_uncond": [0]}
    options["wrappers"] = model.wrappers
    given = {name: value.to(inner.dtype) for name, value in given.items()}
    control = {part: [t if t is None else t.to(inner.dtype) for t in added] for part, added in zero.items()}
    plain, controlled = (
        inner(x.to(inner.dtype), level, control=c, transformer_options=options, **given) for c in (None, control)
    )
    assert controlled.shape == x.shape and far(plain, controlled) > 0.01


def test_a_model_without_fluxs_blocks_is_told(nano):
    from types import SimpleNamespace

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(AtelierError, match=r"has not Flux\.1's blocks"):
        node("StyleReference", other, None, **STYLE)
