"""Reading ncnn models: by hand, the layouts of every official RIFE v4, broken files, and fetching."""

import hashlib
import io
import random
import shutil
import struct
from fractions import Fraction

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames import rife, rife_models
from flux_atelier.core.frames.analytic_rife import MAKERS, Network, write_analytic_model
from flux_atelier.core.frames.ncnn_model import Blob, check_weights, read_param, shapes, weights_of
from flux_atelier.core.frames.rife_models import (
    Download,
    Layout,
    check_model,
    digest_of_file,
    fetch_model,
    find_model,
    known_models,
    layout_of,
    list_models,
)

SMALL = """7767517
6 7
Input in0 0 1 in0
Split twice 1 2 in0 a b
Convolution halve 1 1 a c 0=8 1=3 3=2 4=1 5=1 6=216 9=2 -23310=1,2.000000e-01
Crop two 1 1 b d -23309=1,1 -23310=1,2147483647 -23311=1,0
Interp small 1 1 d e 0=2 1=5.000000e-01 2=5.000000e-01
Concat out 2 1 c e out 0=0
"""
SMALL_BYTES = 4 + 216 * 4 + 8 * 4


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "flownet.param"
    path.write_text(SMALL)
    return path


def test_a_graph_is_read(small):
    graph = read_param(small)
    assert [layer.kind for layer in graph] == ["Input", "Split", "Convolution", "Crop", "Interp", "Concat"]
    assert graph[2].inputs == ("a",)
    assert graph[2].params == {0: 8, 1: 3, 3: 2, 4: 1, 5: 1, 6: 216, 9: 2, 10: (0.2,)}
    assert graph[1].outputs == ("a", "b")
    assert graph[5].line == 8


def test_channels_and_sizes_by_hand(small):
    blobs = shapes(read_param(small), {"in0": 3}, small)
    assert blobs["c"] == Blob(8, Fraction(1, 2))
    assert blobs["d"] == Blob(2, Fraction(1))
    assert blobs["out"] == Blob(10, Fraction(1, 2))


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("Convolution x 1 1 a b 0=8 1=3 5=1 6=216", [(216, True), (8, False)]),
        ("Convolution x 1 1 a b 0=8 1=3 6=216", [(216, True)]),
        ("Deconvolution x 1 1 a b 0=4 1=4 3=2 4=1 5=1 6=128", [(128, True), (4, False)]),
        ("ConvolutionDepthWise x 1 1 a b 0=2 1=3 6=18 7=2", [(18, True)]),
        ("PReLU x 1 1 a b 0=96", [(96, False)]),
        ("MemoryData x 0 1 b 0=1 1=1 2=96", [(96, False)]),
        ("MemoryData x 0 1 b 0=1 1=1 2=96 21=0", [(96, True)]),
        ("ReLU x 1 1 a b 0=2.000000e-01", []),
    ],
)
def test_what_a_layer_reads_of_the_weights(tmp_path, line, runs):
    source = "" if " 0 1 " in line else "Input a 0 1 a\n"
    count = 2 if source else 1
    (tmp_path / "p").write_text(f"7767517\n{count} {count}\n{source}{line}\n")
    assert weights_of(read_param(tmp_path / "p")[-1]) == runs


@pytest.mark.parametrize(
    ("weights", "length"),
    [
        (struct.pack("<I", 0) + bytes(216 * 4), SMALL_BYTES),
        (struct.pack("<I", 0x0002C056) + bytes(216 * 4), SMALL_BYTES),
        (struct.pack("<I", 0x01306B47) + bytes(216 * 2), 4 + 216 * 2 + 32),
    ],
)
def test_the_weights_are_counted_to_the_byte(small, weights, length):
    path = small.with_name("flownet.bin")
    whole = weights + bytes(8 * 4)
    path.write_bytes(whole)
    assert check_weights(read_param(small), path) == length == len(whole)
    for wrong in (whole[:-1], whole + b"\0", whole[:3], b""):
        path.write_bytes(wrong)
        with pytest.raises(AtelierError, match=r"its \.param reads"):
            check_weights(read_param(small), path)


def test_half_precision_runs_fill_whole_words(tmp_path):
    (tmp_path / "p").write_text("7767517\n2 2\nInput a 0 1 a\nConvolution x 1 1 a b 0=1 1=3 6=27\n")
    (tmp_path / "b").write_bytes(struct.pack("<I", 0x01306B47) + bytes(56))  # 27 numbers: 54 bytes, and 2 more
    assert check_weights(read_param(tmp_path / "p"), tmp_path / "b") == 60


# --- layouts of the official models


class Official(Network):
    """A graph of the shape of an official RIFE v4, a few channels wide."""

    def deconvolve(self, a, given, made):
        self._keep_zeros(made * given * 16, made)
        return self.layer("Deconvolution", (a,), f"0={made} 1=4 3=2 4=1 5=1 6={made * given * 16}")

    def halve(self, a, given, made):
        self._keep_zeros(made * given * 9, made)
        return self.layer("Convolution", (a,), f"0={made} 1=3 3=2 4=1 5=1 6={made * given * 9} 9=2 -23310=1,2.0e-01")

    def constant(self, channels):
        self.weights += bytes(4 * channels)
        return self.layer("MemoryData", (), f"0=1 1=1 2={channels}")

    def _keep_zeros(self, count, bias):
        self.weights += bytes(4 + 4 * count + 4 * bias)


def official(scales=(8, 4, 2, 1), shuffled=True, features=0, beta=True, flows=True, deeper=1):
    """A RIFE v4: blocks at falling shares of the frame, each correcting the flow and the mask of those before it.

    shuffled  4.5 on: the block ends in a PixelShuffle
    features  4.7 on: channels of an encoder beside each frame
    beta      4.5 on but 4.6: each residual has a learned weight
    flows     the blobs flow0..3 have names
    deeper    4.25-lite: the block halves once more
    """
    net = Official()
    first, second, time = net.frames()
    pictures = (first, second)
    encoded = ()
    if features:
        encoded = tuple(net.deconvolve(net.halve(frame, 3, 4), 4, features) for frame in pictures)
    flow = mask = ""
    for i, scale in enumerate(scales):
        if flow:
            warps = [
                net.warp(x, net.channels(flow, 2 * k, 2 * k + 2)) for x in (pictures, encoded) for k, x in enumerate(x)
            ]
            blobs, width = [*warps, time, mask, flow], 6 + 2 * features + 1 + 1 + 4
        else:
            blobs, width = [*pictures, *encoded, time], 7 + 2 * features
        x = net.resize(net.concat(*blobs), 1 / scale)
        for given in (width, *[8] * deeper):
            x = net.halve(x, given, 8)
        kept = net.convolve(x, [[[[0.0] * 3] * 3] * 8] * 8)
        x = net.binary("add", net.binary("mul", kept, net.constant(8)) if beta else kept, x)
        name = f"flow{i}" if flows and i < 4 else ""
        x = net.deconvolve(x, 8, 24 if shuffled else 5)
        if shuffled:
            x = net.layer("PixelShuffle", (x,), "0=2", name)
        elif name:
            net.layers[-1] = (*net.layers[-1][:3], (name,), net.layers[-1][4])
            x = name
        x = net.resize(x, float(scale * 2 ** (deeper - (1 if shuffled else 0))))
        step = net.binary("mul", net.channels(x, 0, 4), float(scale))
        flow = net.layer("Eltwise", (flow, step), "0=1 -23301=2,1.0,1.0") if flow else step
        mask = net.binary("add", mask, net.channels(x, 4, 5)) if mask else net.channels(x, 4, 5)
    a, b = (net.warp(frame, net.channels(flow, 2 * k, 2 * k + 2)) for k, frame in enumerate(pictures))
    share = net.layer("Sigmoid", (mask,))
    mixed = net.binary("add", net.binary("mul", a, share), net.binary("mul", b, net.binary("from", share, 1.0)))
    net.clip(mixed, 0, 1, out="out0")
    return net


OFFICIAL = {
    "4.0": (dict(shuffled=False, beta=False), Layout(4, 32, 4, False)),
    "4.1 to 4.4": (dict(shuffled=False, beta=False, flows=False), Layout(4, 32, 0, False)),
    "4.5": (dict(flows=False), Layout(4, 32, 0, False)),
    "4.6": (dict(beta=False), Layout(4, 32, 4, False)),
    "4.7 to 4.24": (dict(features=4), Layout(4, 32, 4, False)),
    "4.17-lite, 4.23": (dict(features=4, flows=False), Layout(4, 32, 0, False)),
    "4.25, 4.26": (dict(scales=(16, 8, 4, 2, 1), features=4, flows=False), Layout(5, 64, 0, False)),
    "4.25-lite": (dict(scales=(16, 8, 4, 2, 1), features=4, flows=False, deeper=2), Layout(5, 128, 0, False)),
}


def save(net, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flownet.param").write_text(net.text())
    (folder / "flownet.bin").write_bytes(net.weights)
    return folder


@pytest.mark.parametrize("version", OFFICIAL)
def test_official_layouts_are_told_from_their_graphs(tmp_path, version):
    options, layout = OFFICIAL[version]
    assert check_model(save(official(**options), tmp_path / "a model of any name")) == layout


@pytest.mark.skipif(not rife.usable(), reason="rife-ncnn-vulkan-python or libvulkan.so.1 is not installed")
@pytest.mark.parametrize("version", OFFICIAL)
def test_the_real_engine_runs_official_layouts(tmp_path, version):
    """Without weights nothing moves and the mask is one half, whatever the folder is called."""
    first, second = torch.rand(2, 3, 45, 101, generator=torch.Generator().manual_seed(0))
    with rife.Rife(save(official(**OFFICIAL[version][0]), tmp_path / "m")) as between:
        assert (between(first, second, 0.25) - (first + second) / 2).abs().max() <= 1 / 255


@pytest.mark.parametrize("kind", MAKERS)
def test_our_own_models_pass(tmp_path, kind):
    folder = write_analytic_model(tmp_path / "m", kind)
    assert check_model(folder).padding == 32
    again = write_analytic_model(tmp_path / "n", kind)
    assert all((folder / f).read_bytes() == (again / f).read_bytes() for f in rife_models.FILES)


def test_the_motion_model_is_small(tmp_path):
    folder = write_analytic_model(tmp_path / "m")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 110_000


def test_another_analytic_model_is_refused(tmp_path):
    with pytest.raises(AtelierError, match="Choose motion, shift, blend"):
        write_analytic_model(tmp_path / "m", "magic")


# --- broken models


def change(old, new, file="flownet.param"):
    def spoil(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return spoil


def put(data, file="flownet.param"):
    return lambda folder: (folder / file).write_bytes(data)


def cut(file, size):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def longer(folder):
    with open(folder / "flownet.bin", "ab") as opened:
        opened.write(b"\0\0\0\0")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
BROKEN = {
    "no folder": (shutil.rmtree, "no folder"),
    "no param": (lambda f: (f / "flownet.param").unlink(), "has no flownet.param"),
    "no bin": (lambda f: (f / "flownet.bin").unlink(), "has no flownet.bin"),
    "an empty param": (put(b""), "not an ncnn model"),
    "a page of html": (put(b"<!DOCTYPE html>\n<html>"), "not an ncnn model"),
    "bytes": (put(bytes(range(256)) * 9), "not an ncnn model"),
    "param is a pointer": (put(LFS), "Git LFS pointer"),
    "bin is a pointer": (put(LFS, "flownet.bin"), "Git LFS pointer"),
    "an empty bin": (put(b"", "flownet.bin"), "ends after 0 bytes"),
    "a bin cut short": (cut("flownet.bin", 1000), "ends after 1000 bytes"),
    "a bin of another model": (longer, "different models"),
    "8-bit weights": (put(b"\x38\x4b\x0d\x00" + bytes(68_000), "flownet.bin"), "unknown format"),
    "a param cut at a line": (cut("flownet.param", 3000), "damaged"),
    "counts that are no numbers": (put(b"7767517\nmany\nInput in0 0 1 in0\n"), "announces no blobs"),
    "garbage in a line": (change("BinaryOp", "\x01"), "no RIFE v4 model has"),
    "an unknown layer": (change("BinaryOp", "NoSuchLayer"), "no RIFE v4 model has"),
    "a layer without names": (change("Clip clip", "Clip"), "is no layer"),
    "a parameter that is no number": (change("0=3 1=3", "0=three 1=3"), "is no layer"),
    "a blob from nowhere": (change("rife.Warp warp", "rife.Warp warp_x 2 1 nowhere else a\nrife.Warp warp"), "damaged"),
    "a loose wire": (change("1 1 in2_0", "1 1 in2_x"), "no earlier layer makes"),
    "a blob used up": (change("1 1 in2_1", "1 1 in2_0"), "used up"),
    "weights of another size": (change("0=1 1=3 4=1 5=0 6=27", "0=1 1=3 4=1 5=0 6=54"), "54 weights where 27"),
    "channels past the end": (change("-23309=1,2 -23310=1,3", "-23309=1,2 -23310=1,9"), "channels 2 to 9"),
    "sizes that do not meet": (change("1=5.000000e-01 2=5.000000e-01", "1=2.500000e-01 2=2.500000e-01"), "meet"),
    "a picture of one channel": (change("Clip ", "Crop "), "does not fit its inputs"),
    "no out0": (change(" out0 ", " out1 "), "no RIFE v4 model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_models_are_told(tmp_path, case):
    folder = write_analytic_model(tmp_path / "m")
    spoil, words = BROKEN[case]
    spoil(folder)
    with pytest.raises(AtelierError, match=words) as told:
        check_model(folder)
    assert str(tmp_path) in str(told.value)


ODD = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "99999999999",
    "1e30",
    "nan",
    "inf",
    "-233",
    "=",
    ",",
    "7=1",
    "-23309=0",
    "-23309=1,5",
    "Split",
    "in0",
    "Crop",
    "rife.Warp",
]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_changes_in_a_graph_is_accepted_or_told(tmp_path, seed):
    """No change may raise anything but AtelierError; most are refused."""
    rng = random.Random(seed)
    folder = write_analytic_model(tmp_path / "m")
    param = folder / "flownet.param"
    lines, refused = param.read_text().splitlines(), 0
    for _ in range(40):
        changed = list(lines)
        at = rng.randrange(len(changed))
        words = changed[at].split()
        where = rng.randrange(len(words))
        word = rng.choice(ODD)
        words[where : where + 1] = rng.choice(([word], [], [f"{words[where].partition('=')[0]}={word}"]))
        changed[at] = " ".join(words)
        param.write_text("\n".join(changed) + "\n")
        try:
            check_model(folder)
        except AtelierError:
            refused += 1
    assert refused > 20


def test_older_rife_is_told(tmp_path):
    net = Network()
    a, b = (net.layer("Input", (), out=f"input{i}") for i in range(2))
    net.layer("BinaryOp", (a, b), "0=0", "flow")
    with pytest.raises(AtelierError, match="version 4 or later"):
        check_model(save(net, tmp_path / "rife-v4.6"))


def test_a_picture_of_another_size_is_told(tmp_path):
    net = Network()
    first, second, time = net.frames()
    net.resize(net.binary("mul", net.binary("add", first, second), time), 0.5)
    net.layer("Clip", (f"b{len(net.layers) - 1}",), "0=0 1=1", "out0")
    with pytest.raises(AtelierError, match="3 channels at 1/2"):
        check_model(save(net, tmp_path / "m"))


def test_point_convolutions_are_noticed(tmp_path):
    net = Network()
    first, second, time = net.frames()
    mixed = net.binary("mul", net.binary("add", first, second), time)
    net.weights += struct.pack("<I", 0) + bytes(36)
    net.layer("Convolution", (mixed,), "0=3 1=1 6=9", "out0")
    folder = save(net, tmp_path / "m")
    assert layout_of(read_param(folder / "flownet.param"), folder / "flownet.param").pointwise


# --- folders


def test_models_are_found_by_name(tmp_path):
    one, two = tmp_path / "frame_interpolation", tmp_path / "rife"
    for place in (one / "rife-v4.6", one / "release" / "models" / "rife-v4.26", two / "mine", two / "rife-v4.6"):
        write_analytic_model(place, "blend")
    (one / "film.safetensors").write_bytes(b"")
    write_analytic_model(one / ".rife-v9.unfinished", "blend")
    roots = (one, two, tmp_path / "not there")
    assert list(list_models(roots)) == ["mine", "release/models/rife-v4.26", "rife-v4.6"]
    assert find_model("rife-v4.6", roots) == one / "rife-v4.6"
    assert find_model(" rife-v4.26 ", roots) == one / "release" / "models" / "rife-v4.26"
    assert find_model("release/models/rife-v4.26", roots) == one / "release" / "models" / "rife-v4.26"
    for name in ("", "..", "../rife/mine", "rife-v9"):
        with pytest.raises(AtelierError, match=r"They hold mine, release/models/rife-v4.26, rife-v4.6"):
            find_model(name, (one, two))
    with pytest.raises(AtelierError, match="Put a folder"):
        find_model("a", (tmp_path / "not there",))


# --- fetching


def sha(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def offered(tmp_path):
    """A small model as downloads, and an opener that serves it."""
    source = write_analytic_model(tmp_path / "source", "shift")
    data = {f"https://example.org/{f}": (source / f).read_bytes() for f in rife_models.FILES}
    files = {url.rsplit("/", 1)[-1]: Download(url, sha(d)) for url, d in data.items()}
    return files, lambda url: io.BytesIO(data[url])


def test_a_model_is_fetched_whole(tmp_path, offered):
    files, opened = offered
    told = []
    folder = fetch_model("mine", tmp_path / "models", files, opened, told.append)
    assert check_model(folder).padding == 32
    assert told == sorted(told)
    assert told[-1] == sum(f.stat().st_size for f in folder.iterdir())
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["mine"]
    with pytest.raises(AtelierError, match="is there already"):
        fetch_model("mine", tmp_path / "models", files, opened)


def never(url):
    raise AssertionError(f"{url} was opened")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Download("http://example.org/x", "sha256:" + "0" * 64), "not a plain https"),
        (Download("file:///etc/passwd", "sha256:" + "0" * 64), "not a plain https"),
        (Download("https://me:secret@example.org/x", "sha256:" + "0" * 64), "not a plain https"),
        (Download("https://example.org/x", ""), "Give sha256"),
        (Download("https://example.org/x", "sha256:12"), "Give sha256"),
        (Download("https://example.org/x", "md5:" + "0" * 32), "Give sha256"),
    ],
)
def test_nothing_is_opened_without_https_and_a_digest(tmp_path, offered, wrong, words):
    for file in rife_models.FILES:
        with pytest.raises(AtelierError, match=words):
            fetch_model("m", tmp_path / "models", offered[0] | {file: wrong}, never)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "unknown"])
def test_names_are_plain_and_known(tmp_path, name):
    with pytest.raises(AtelierError, match=r"not a plain folder name|no known model"):
        fetch_model(name, tmp_path, None, never)


def broken_line(url):
    raise ConnectionResetError(104, "Connection reset by peer")


def test_a_failed_fetch_leaves_nothing(tmp_path, offered, monkeypatch):
    files, opened = offered
    bad = Download(files["flownet.bin"].url, "sha256:" + "0" * 64)
    models = tmp_path / "models"
    with pytest.raises(AtelierError, match="not the file that was meant"):
        fetch_model("m", models, files | {"flownet.bin": bad}, opened)
    with pytest.raises(AtelierError, match="Connection reset"):
        fetch_model("m", models, files, broken_line)
    swapped = {"flownet.param": files["flownet.bin"], "flownet.bin": files["flownet.param"]}
    with pytest.raises(AtelierError, match="not an ncnn model"):
        fetch_model("m", models, swapped, opened)

    def cancelled(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model("m", models, files, opened, cancelled)
    monkeypatch.setattr(rife_models, "LARGEST", 100)
    with pytest.raises(AtelierError, match="is larger than"):
        fetch_model("m", models, files, opened)
    assert not list(models.iterdir())


def test_a_redirection_out_of_https_is_refused():
    from urllib.request import Request

    handler = rife_models._OnlySecure()
    request = Request("https://example.org/x")
    with pytest.raises(AtelierError, match="not a plain https"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/x")
    assert handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://example.org/y")


def test_known_models_are_pinned():
    known = known_models()
    assert {"rife-v4", "rife-v4.6", "rife-v4.22-lite", "rife-v4.26"} <= set(known)
    for name, files in known.items():
        assert set(files) == set(rife_models.FILES)
        for file in files.values():
            rife_models._check_address(file.url)
            rife_models._check_digest(file)
            assert f"/{name}/" in file.url


def test_digests_are_those_of_git_and_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert digest_of_file(tmp_path / "a", "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest_of_file(tmp_path / "a", "sha256") == sha(b"hello\n")
