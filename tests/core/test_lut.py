"""Colour maps as .cube files: by hand, there and back, and beside the map itself."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.style.color import SIZES, LinearMap, Still, fit_map, tabulate
from flux_atelier.core.style.lut import LONGEST, read_cube, write_cube


def pictures(seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, 1, 1, generator=rng) * torch.rand(1, 3, 24, 40, generator=rng)


def test_a_table_of_two_by_hand_has_red_running_first(tmp_path):
    swap = LinearMap(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), torch.zeros(3))
    lines = write_cube(tmp_path / "swap.cube", tabulate(swap, 2), 'a "look"').read_text().splitlines()
    assert lines[:4] == ["TITLE \"a 'look'\"", "LUT_3D_SIZE 2", "DOMAIN_MIN 0 0 0", "DOMAIN_MAX 1 1 1"]
    assert lines[4:8] == [
        "0.000000 0.000000 0.000000", "0.000000 1.000000 0.000000", "1.000000 0.000000 0.000000",
        "1.000000 1.000000 0.000000",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])
def test_a_table_of_33_read_back_equals_the_map_within_one_level(tmp_path, method):
    fitted = fit_map(pictures(0), pictures(1)[0] ** 2, method)
    table = read_cube(write_cube(tmp_path / "look.cube", tabulate(fitted)))
    colors = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(fitted(colors).clamp(0, 1), colors, atol=0.02)
    assert (table(colors).clamp(0, 1) - fitted(colors).clamp(0, 1)).abs().max() <= 1 / 255


def test_a_table_of_nothing_and_one_of_no_strength_change_nothing():
    colors = pictures(3)
    assert torch.allclose(tabulate(Still(), 5)(colors), colors, atol=1e-6)
    assert torch.allclose(tabulate(fit_map(colors, pictures(4)[0]), 5, 0.0)(colors), colors, atol=1e-6)


def test_a_domain_and_comments_are_read(tmp_path):
    file = tmp_path / "wide.cube"
    rows = [f"{r} {g} {b}" for b in (0, 1) for g in (0, 1) for r in (0, 1)]
    file.write_text("# made by hand\nLUT_3D_SIZE 2\nDOMAIN_MAX 2 2 2\n\n" + "\n".join(rows) + "\n")
    assert torch.allclose(read_cube(file)(torch.full((1, 3, 1, 1), 0.5)), torch.tensor(0.25))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("LUT_3D_SIZE 2\n0 0 0\n", "1 entries for LUT_3D_SIZE 2"),
        ("LUT_1D_SIZE 2\n0 0 0\n1 1 1\n", "LUT_1D_SIZE in line 1"),
        ("LUT_3D_SIZE 2\n0 0 zero\n", "Line 2"),
        ("LUT_3D_SIZE 2\nLUT_3D_INPUT_RANGE 0\n0 0 0\n", "Line 2"),
        ("LUT_3D_SIZE 2\nLUT_3D_INPUT_RANGE 1 1\n" + "0 0 0\n" * 8, "domain"),
        ("LUT_3D_SIZE 2\n0 0 nan\n", "Line 2"),
        ("LUT_3D_SIZE 2\nDOMAIN_MIN 1 1 1\n" + "0 0 0\n" * 8, "domain"),
        ("", "0 entries"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, text, told):
    file = tmp_path / "bad.cube"
    file.write_text(text)
    with pytest.raises(AtelierError, match=told):
        read_cube(file)


def test_a_missing_file_and_a_wrong_size_are_told(tmp_path):
    with pytest.raises(AtelierError, match="no file"):
        read_cube(tmp_path / "none.cube")
    with pytest.raises(AtelierError, match="2 to 129"):
        tabulate(Still(), 1)


def test_ffmpeg_applies_a_file_as_we_do(tmp_path):
    av = pytest.importorskip("av")
    path = write_cube(tmp_path / "look.cube", tabulate(fit_map(pictures(0), pictures(1)[0] ** 2)))
    colors = (torch.rand(24, 40, 3, generator=torch.Generator().manual_seed(2)) * 255).round()
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=40, height=24, format="rgb24", time_base="1/25"),
        graph.add("lut3d", f"file={path}:interp=trilinear"),
        graph.add("buffersink"),
    ).configure()
    graph.push(av.VideoFrame.from_ndarray(colors.byte().numpy(), format="rgb24"))
    theirs = torch.from_numpy(graph.pull().to_ndarray(format="rgb24")).float() / 255
    ours = read_cube(path)((colors / 255).permute(2, 0, 1)[None]).clamp(0, 1)[0].permute(1, 2, 0)
    assert (ours - colors / 255).abs().max() > 0.1 and (theirs - ours).abs().max() <= 1.01 / 255


ROWS = "\n".join(f"{r} {g} {b}" for b in (0, 1) for g in (0, 1) for r in (0, 1))


def test_a_file_of_resolve_has_one_range_for_all_channels(tmp_path):
    file = tmp_path / "resolve.cube"
    file.write_text(f"LUT_3D_SIZE 2\nLUT_3D_INPUT_RANGE 0.0 2.0\n{ROWS}\n")
    table = read_cube(file)
    assert (table.low, table.high) == ((0.0,) * 3, (2.0,) * 3)
    assert torch.allclose(table(torch.full((1, 3, 1, 1), 0.5)), torch.tensor(0.25))


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    file = tmp_path / "mark.cube"
    file.write_text(f"LUT_3D_SIZE 2\n{ROWS}\n", encoding="utf-8-sig")
    assert len(read_cube(file).table) == 2


def test_the_largest_table_that_can_be_made_can_be_read(tmp_path):
    """By size alone: the longest line that the reader takes, times the entries."""
    longest = "-999999.999999 " * 3
    assert len(longest) * SIZES[1] ** 3 + 1000 < LONGEST
    with pytest.raises(AtelierError, match=f"{SIZES[0]} to {SIZES[1]}"):
        tabulate(Still(), SIZES[1] + 1)
    file = tmp_path / "fine.cube"
    file.write_text(f"LUT_3D_SIZE {SIZES[1] + 1}\n0 0 0\n")
    with pytest.raises(AtelierError, match=f"LUT_3D_SIZE {SIZES[1] + 1}.* {SIZES[0]} to {SIZES[1]}"):
        read_cube(file)
