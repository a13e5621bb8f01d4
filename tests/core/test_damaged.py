"""Two hundred damaged LoRA files: each gets a sentence, none a crash, and nothing is written."""

import json
import random
import struct

import pytest
import torch
from test_lora import some_lora

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors
from flux_atelier.core.lora.formats import read_lora, to_layout, write_lora
from flux_atelier.core.lora.formats.layouts import SCHEMES
from flux_atelier.core.lora.record import Lora

LAYOUTS = [layout for layout in SCHEMES if layout != "xlabs"]


def whole(layout="kohya") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in to_layout(some_lora(), layout, torch.float16).items()}


def factors_of(state):
    return [k for k, v in state.items() if v.dim() == 2]


def cut_file(path, rng):
    write_tensors(path, whole(rng.choice(LAYOUTS)))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def header_length(path, rng):
    write_tensors(path, whole())
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63])) + data[8:])


def header_garbage(path, rng):
    write_tensors(path, whole())
    data = bytearray(path.read_bytes())
    for _ in range(40):
        data[8 + rng.randrange(400)] = rng.randrange(256)
    path.write_bytes(bytes(data))


def huge_header(path, rng):
    header = json.dumps({"__metadata__": {"x": "a" * (101 * 2**20)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def offsets(path, rng):
    write_tensors(path, whole())
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    key = rng.choice([k for k in header if k != "__metadata__"])
    header[key]["data_offsets"][1] += rng.choice([2, 1000, 2**33])
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def wrong_shape(path, rng):
    state = whole(rng.choice(LAYOUTS))
    key = rng.choice(factors_of(state))
    up = ".lora_up" in key or ".lora_B" in key
    state[key] = state[key][:, 1:] if up else state[key][1:]
    write_tensors(path, state)


def wrong_dimensions(path, rng):
    state = whole(rng.choice(LAYOUTS))
    key = rng.choice(factors_of(state))
    state[key] = rng.choice([state[key].flatten(), state[key][None], torch.tensor(1.0)])
    write_tensors(path, state)


def not_finite(path, rng):
    state = whole(rng.choice(LAYOUTS))
    key = rng.choice(factors_of(state))
    state[key][rng.randrange(len(state[key])), 0] = rng.choice([float("nan"), float("inf"), -float("inf")])
    write_tensors(path, state)


def alpha_not_finite(path, rng):
    state = whole(rng.choice(["kohya", "comfy", "onetrainer"]))
    state[rng.choice([k for k in state if k.endswith(".alpha")])] = torch.tensor(
        rng.choice([float("nan"), float("inf")])
    )
    write_tensors(path, state)


def missing_pair(path, rng):
    state = whole(rng.choice(LAYOUTS))
    del state[rng.choice(factors_of(state))]
    write_tensors(path, state)


def alpha_alone(path, rng):
    state = whole(rng.choice(["kohya", "comfy", "onetrainer"]))
    module = rng.choice([k for k in state if k.endswith(".alpha")]).removesuffix(".alpha")
    write_tensors(path, {k: v for k, v in state.items() if not k.startswith(f"{module}.lora")})


def no_rank(path, rng):
    state = whole()
    key = rng.choice([k for k in factors_of(state) if "lora_down" in k])
    state[key] = state[key][:0]
    state[key.replace("lora_down", "lora_up")] = state[key.replace("lora_down", "lora_up")][:, :0]
    write_tensors(path, state)


def other_model(path, rng):
    keys = (
        "lora_unet_blocks_{}_cross_attn_k", "transformer.transformer_blocks.{}.img_mlp.net.0.proj",
        "diffusion_model.layers.{}.attention.to_q", "transformer.double_blocks.{}.img_attn_qkv", "model.layers.{}.self_attn.q_proj",
        "transformer.transformer_blocks.{}.attn1.to_q", "some.other.model.{}.layer",
    )  # fmt: skip
    key, state = rng.choice(keys), {}
    for i in range(rng.randrange(1, 9)):
        name = key.format(i)
        state |= {f"{name}.lora_down.weight": torch.zeros(2, 8), f"{name}.lora_up.weight": torch.zeros(8, 2)}
    write_tensors(path, state)


def no_lora(path, rng):
    write_tensors(
        path, {f"{rng.choice(['decoder.conv_in', 'double_blocks.0.img_attn.qkv', 'x'])}.weight": torch.zeros(4, 4)}
    )


def other_file(path, rng):
    kinds = (b"", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00.", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<html>404</html>", bytes(range(256)) * 9)  # fmt: skip
    path.write_bytes(rng.choice(kinds))


def part_of_a_product(path, rng):
    parts = {
        "lokr_w1": (4, 4),
        "lokr_w2_a": (32, 2),
        "lokr_w2_b": (2, 32),
        "hada_w1_a": (128, 2),
        "hada_w2_b": (2, 128),
    }
    name = rng.choice(list(parts))
    write_tensors(path, {f"lora_unet_double_blocks_0_img_attn_proj.{name}": torch.zeros(parts[name])})


def wrong_rows(path, rng):
    key, state = "transformer.transformer_blocks.0.attn.to_{}", {}
    for c, rows in zip("qkv", rng.sample([64, 128, 192, 256], 3), strict=True):
        state |= {
            f"{key.format(c)}.lora_A.weight": torch.ones(2, 128),
            f"{key.format(c)}.lora_B.weight": torch.ones(rows, 2),
        }
    write_tensors(path, state)


FAULTS = [
    (cut_file, 40), (header_length, 5), (header_garbage, 10), (huge_header, 1), (offsets, 10), (wrong_shape, 25),
    (wrong_dimensions, 15), (not_finite, 25), (alpha_not_finite, 6), (missing_pair, 20), (alpha_alone, 10), (no_rank, 5),
    (other_model, 12), (no_lora, 4), (other_file, 6), (part_of_a_product, 5), (wrong_rows, 6),
]  # fmt: skip
CASES = [(fault, seed) for fault, count in FAULTS for seed in range(count)]


def test_there_are_two_hundred():
    assert len(CASES) >= 200


@pytest.mark.parametrize(("fault", "seed"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_a_damaged_file_gets_a_sentence(tmp_path, fault, seed):
    path, made = tmp_path / "damaged.safetensors", tmp_path / "made.safetensors"
    fault(path, random.Random(seed))
    with pytest.raises(AtelierError) as told:
        write_lora(made, read_lora(path))
    text = str(told.value)
    assert "damaged.safetensors" in text
    assert text.endswith(".")
    assert text.count(". ") <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.safetensors"]


def test_an_undamaged_one_passes(tmp_path):
    """The same road for a whole file, so that the faults above are what is refused."""
    for layout in LAYOUTS:
        write_lora(tmp_path / "a.safetensors", read_lora(write_lora(tmp_path / "b.safetensors", some_lora(), layout)))
    assert isinstance(read_lora(tmp_path / "a.safetensors"), Lora)
