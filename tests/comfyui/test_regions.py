"""Regional prompts and LoRAs on nano-flux: each region obeys its own prompt, and a LoRA acts where its mask is."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError

BOTH = (
    "a large red circle in the center, plain yellow background",
    "a large white square in the center, plain blue background",
)


def run(node, **inputs):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs).args


def halves():
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1
    return {"mask0": left, "mask1": 1 - left}


def draw(nano, conditioning, seed=3, steps=16):
    from flux_atelier.nodes import host

    model, _, vae = nano
    with torch.inference_mode():
        latent = host.sample(model, conditioning, torch.zeros(1, 16, 8, 8), seed, steps)
        return vae.decode(latent)[0].float()


def plain(nano, text):
    from flux_atelier.nodes import host

    with torch.inference_mode():
        return host.condition(nano[1], text, 3.5)


def regions(nano, **changes):
    from flux_atelier.nodes.regions import RegionalPrompts

    given = dict(
        clip=nano[1], masks=halves(), prompts="\n".join(BOTH), rest_prompt="",
        strengths="1.0", feather=0, guidance=3.5,
    )  # fmt: skip
    return run(RegionalPrompts, **given | changes)[0]


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_each_half_is_drawn_by_its_prompt(nano, seed):
    made = draw(nano, regions(nano), seed)
    red, blue = (draw(nano, plain(nano, what), seed) for what in BOTH)

    def apart(a, b, part):
        return (a[:, part] - b[:, part]).abs().mean().item()

    left, right = slice(0, 28), slice(36, 64)
    assert apart(made, red, left) < apart(made, blue, left)
    assert apart(made, blue, right) < apart(made, red, right)


def test_one_mask_over_all_is_the_plain_prompt(nano):
    whole = {"mask0": torch.ones(1, 64, 64)}
    made = draw(nano, regions(nano, masks=whole, prompts=BOTH[0]))
    assert torch.allclose(made, draw(nano, plain(nano, BOTH[0])), atol=2e-3)


def test_a_lora_acts_where_its_mask_is_and_leaves_the_model_as_it_was(nano):
    from flux_atelier.nodes.nano import PracticeLoras

    painted = run(PracticeLoras)[0]
    prompts = dict(prompts=f"{BOTH[0]}\n{BOTH[0]}")
    before = draw(nano, plain(nano, BOTH[0]))
    without = draw(nano, regions(nano, **prompts))
    made = draw(nano, regions(nano, **prompts, loras={"lora0": painted}))
    moved = (made - without).abs().mean(dim=(0, 2))
    assert moved[:28].mean() > 2 * moved[40:].mean()
    assert torch.equal(before, draw(nano, plain(nano, BOTH[0])))


def test_mistakes_are_told(nano):
    from flux_atelier.nodes.regions import RegionalPrompts

    with pytest.raises(AtelierError, match="1 prompt for 2 masks"):
        regions(nano, prompts="one")
    with pytest.raises(AtelierError, match="lora2 has no mask"):
        regions(nano, loras={"lora2": {"a": torch.zeros(1)}})
    with pytest.raises(AtelierError, match="2 masks in mask0"):
        regions(nano, masks=halves() | {"mask0": torch.ones(2, 64, 64)})
    assert "no number" in RegionalPrompts.validate_inputs(strengths="much")
    assert RegionalPrompts.validate_inputs(strengths="1, .5") is True


def test_a_soft_edge_falls_evenly():
    from flux_atelier.nodes.regions import soft

    mask = soft(halves()["mask0"], 4)
    assert mask.shape == (64, 64) and mask[0, 20] == 1 and mask[0, 44] == 0
    assert (mask[0, 1:] <= mask[0, :-1] + 1e-6).all() and 0.3 < mask[0, 31] < 0.7
    assert soft(torch.ones(8, 8), 400).shape == (8, 8)
