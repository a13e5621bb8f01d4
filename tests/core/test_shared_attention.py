"""Shared attention: by hand on single tokens, beside torch's attention, and the laws that references live by."""

import pytest
import torch
import torch.nn.functional as F

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.style.shared_attention import (
    Sharing,
    StyleOptions,
    adain,
    joined_bias,
    parse_blocks,
    share,
    shared_bias,
    token_weights,
)

TEXT, TOKENS = 3, 4


def tokens(rows=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, TEXT + TOKENS, 8, generator=rng) for _ in range(3))


def sharing(strength=1.0, rows=3, **more) -> Sharing:
    """Row 0 is the reference of the others."""
    return Sharing(
        torch.zeros(rows, 1, dtype=torch.long), torch.arange(rows) > 0, TEXT, TOKENS, strength, **more
    )  # fmt: skip


def attended(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def test_one_token_by_hand():
    """All logits are 0: a picture's value 2 and a reference's 8 mix one to one at strength 1, two to one at one half."""
    zero = torch.zeros(2, 1, 1, 1)
    values = torch.tensor([8.0, 2.0]).view(2, 1, 1, 1)
    for strength, mixed in ((1.0, 5.0), (0.5, 4.0), (2.0, 6.0), (0.0, 2.0)):
        how = Sharing(torch.zeros(2, 1, dtype=torch.long), torch.tensor([False, True]), 0, 1, strength, False)
        out = attended(*share(zero, zero, values, how)).flatten().tolist()
        assert out == pytest.approx([8.0, mixed])


def test_statistics_by_hand():
    content = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1)
    style = torch.tensor([2.0, 8.0]).view(1, 1, 2, 1)
    assert adain(content, style).flatten().tolist() == pytest.approx([2, 8])
    assert adain(content, style, 0.5).flatten().tolist() == pytest.approx([0.5, 4.5])
    assert torch.equal(adain(content, style, 0.0), content)
    only_first = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    assert adain(content, style, only_first).flatten().tolist() == pytest.approx([2, 1])
    assert adain(torch.ones(1, 1, 3, 1), style).isfinite().all()


@pytest.mark.parametrize("statistics", [True, False])
def test_a_reference_attends_as_it_would_alone(statistics):
    q, k, v = tokens()
    out = attended(*share(q, k, v, sharing(statistics=statistics)))
    assert (out[0] - attended(q, k, v)[0]).abs().max() <= 1e-6
    assert (out[1:] - attended(q, k, v)[1:]).abs().max() > 0.01


def test_strength_zero_changes_nobody():
    q, k, v = tokens()
    assert (attended(*share(q, k, v, sharing(0.0))) - attended(q, k, v)).abs().max() <= 1e-6


def test_rows_do_not_see_their_neighbours():
    q, k, v = tokens(4)
    whole = attended(*share(q, k, v, sharing(rows=4)))
    pair = [x[[0, 2]] for x in (q, k, v)]
    assert torch.allclose(whole[2], attended(*share(*pair, sharing(rows=2)))[1], atol=1e-6)


def test_two_references_are_both_beside():
    """Beside attention over keys joined by hand."""
    q, k, v = tokens()
    how = Sharing(torch.tensor([[1, 2]] * 3), torch.tensor([True, False, False]), TEXT, TOKENS, 1.0, False)
    out = attended(*share(q, k, v, how))[0]
    joined = [torch.cat((x[0], x[1, :, TEXT:], x[2, :, TEXT:]), 1) for x in (k, v)]
    assert torch.allclose(out, attended(q[0], *joined), atol=1e-6)


def test_arguments_are_not_written_to():
    given = tokens()
    kept = [x.clone() for x in given]
    share(*given, sharing(where=torch.rand(3, TOKENS)))
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_a_mask_of_the_picture():
    """All white is no mask; all black is no sharing; half white leaves the other half's tokens."""
    q, k, v = tokens()
    plain, shared = attended(q, k, v), attended(*share(q, k, v, sharing()))
    white = attended(*share(q, k, v, sharing(where=torch.ones(3, TOKENS))))
    black = attended(*share(q, k, v, sharing(where=torch.zeros(3, TOKENS))))
    assert torch.allclose(white, shared, atol=1e-6) and torch.allclose(black, plain, atol=1e-6)
    half = torch.zeros(3, TOKENS)
    half[:, :2] = 1
    how = sharing(where=half, statistics=False)
    out = attended(*share(q, k, v, how))
    assert torch.allclose(out[:, :, TEXT + 2 :], plain[:, :, TEXT + 2 :], atol=1e-6)
    assert (out[1:, :, TEXT : TEXT + 2] - plain[1:, :, TEXT : TEXT + 2]).abs().max() > 0.01


def test_a_mask_of_the_reference_hides_tokens():
    q, k, v = tokens()
    seen = torch.tensor([1.0, 0.0, 1.0, 0.0])
    out = attended(*share(q, k, v, sharing(given=seen, statistics=False)))
    other = [x.clone() for x in (k, v)]
    for x in other:
        x[0, :, [TEXT + 1, TEXT + 3]] += 5
    changed = attended(*share(q, *other, sharing(given=seen, statistics=False)))
    assert torch.allclose(out[1:], changed[1:], atol=1e-6)


def test_bias_has_no_queries_unless_a_mask_needs_them():
    assert shared_bias(sharing(), 7, 7).shape == (3, 1, 1, 11)
    assert shared_bias(sharing(where=torch.ones(3, TOKENS)), 7, 7).shape == (3, 1, 7, 11)


@pytest.mark.parametrize("size", [(7, 7), (3, 7, 7), (3, 1, 7, 7), (3, 2, 7, 7), (1, 7), (1, 7, 7), (3, 1, 1, 7)])
@pytest.mark.parametrize("kind", ["float", "bool"])
def test_an_earlier_mask_is_kept(size, kind):
    """What was masked stays masked: beside attention in which the hidden keys are left out by hand."""
    q, k, v = tokens()
    q, k, v, bias = share(q, k, v, sharing(0.7))
    mask = torch.zeros(size)
    mask[..., 1] = -torch.inf
    mask = mask == 0 if kind == "bool" else mask.half()
    out = attended(q, k, v, joined_bias(mask, bias, 7))
    kept = [0, *range(2, 11)]
    assert torch.allclose(out, attended(q, k[:, :, kept], v[:, :, kept], bias[..., kept]), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("all", [("double", 0), ("single", 99)], []),
        ("double", [("double", 18)], [("single", 0)]),
        (" Double 0-2 , single 5", [("double", 2), ("single", 5)], [("double", 3), ("single", 4)]),
        ("single 3 - 4\nsingle 9", [("single", 3), ("single", 9)], [("single", 5), ("double", 3)]),
        ("single 3, single", [("single", 77)], []),
        ("double 1, all", [("double", 9), ("single", 9)], []),
    ],
)
def test_blocks_are_read(text, inside, outside):
    blocks = parse_blocks(text)
    assert all(block in blocks for block in inside) and not any(block in blocks for block in outside)


@pytest.mark.parametrize(
    "text", ["", " , ", "triple 3", "double x", "double 3-1", "double 1-2-3", "double 0.5", "3-4", "all, double x"]
)
def test_blocks_that_mean_nothing_are_told(text):
    with pytest.raises(AtelierError, match="double"):
        parse_blocks(text)


def test_a_window_of_noise_levels():
    options = StyleOptions(sigma_from=0.7, sigma_to=0.2)
    seen = [options.active(float(torch.tensor(s))) for s in (1.0, 0.71, 0.7, 0.5, 0.2, 0.19)]
    assert seen == [False, False, True, True, True, False]
    assert not StyleOptions(strength=0).active(0.5)


def test_masks_become_weights_of_tokens():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    weights = token_weights(mask, 4, 4).view(4, 4)
    assert torch.equal(weights[:, :2], torch.zeros(4, 2)) and torch.allclose(weights[:, 2:], torch.ones(4, 2))
    assert token_weights(torch.rand(2, 30, 70), 3, 5).shape == (2, 15)
