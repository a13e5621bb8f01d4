"""Clips in the real ComfyUI: steadied, evened out, and drawn again on nano-flux, the model left as it was."""

from fractions import Fraction

import comfy.model_management as memory
import comfy.samplers
import pytest
import torch
from test_editing import drawn, sigmas, text
from test_nodes import run
from test_stream import film, packets, shown

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import flicker, judge
from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.files import read_tensors
from flux_atelier.core.frames.restyle import RestyleOptions
from flux_atelier.core.frames.video import probe, read_frames, write_video
from flux_atelier.nodes import host
from flux_atelier.trainer.nano import files as nano_files
from flux_atelier.trainer.nano import scenes

ALONE = dict(coherence=0.0, noise="fresh", steadiness=0.0, palette=0.0)
CAPTION = "a medium yellow square in the center, checkered purple background"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(scope="module")
def styled(nano):
    """nano-flux with the painterly LoRA."""
    lora = read_tensors(nano_files.PAINTED)[0]
    with torch.inference_mode():
        return host.with_lora(nano[0], lora, 1.0)


def moving(count=10, side=64):
    """A square that crosses a checkered ground which moves the other way, [count, 3, side, side]."""
    axis = torch.arange(side) + 0.5 - side / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    ground, dark, front = (
        torch.tensor(v).view(3, 1, 1) / 255
        for v in (scenes.COLORS["purple"], scenes.second_tone("purple"), scenes.COLORS["yellow"])
    )
    out = []
    for t in range(count):
        u = t - (count - 1) / 2
        tone = scenes.texture_share("checkered", x + t, y, torch.zeros(2, 1, 1))
        inside = (0.5 - scenes.shape_distance("square", x + u, y - 0.5 * u, torch.tensor(14.0))).clamp(0, 1)
        out.append(torch.lerp(torch.lerp(ground, dark, tone), front, inside))
    return torch.stack(out)


def as_images(frames):
    return frames.permute(0, 2, 3, 1).contiguous()


def frames_of(images):
    return list(images.permute(0, 3, 1, 2))


def restyled(nano, styled, images, **changes):
    from flux_atelier.nodes.restyling import RestyleFrames

    values = dict(prompt=CAPTION, strength=0.6, structure=0.3, seed=3, steps=8, guidance=3.5)
    values |= RestyleOptions().model_dump() | changes
    return run(RestyleFrames, images=images, model=styled, clip=nano[1], vae=nano[2], **values).args[0]


def style_of(frames):
    chosen = scenes.draw_prompts(32, 5)
    plain = scenes.draw(chosen, 5)
    painted = torch.stack([scenes.paint(p, i) for i, p in enumerate(plain)])
    return style_position(describe(torch.stack(frames)), describe(plain), describe(painted)).mean().item()


def test_a_restyled_clip_has_a_fifth_of_the_warping_error_at_equal_style(nano, styled):
    source = moving()
    images = as_images(source)
    alone, held = [], []
    for seed in (3, 11):
        one = frames_of(restyled(nano, styled, images, seed=seed, **ALONE))
        two = frames_of(restyled(nano, styled, images, seed=seed))
        assert judge(list(source), two).mean("warping") <= 0.2 * judge(list(source), one).mean("warping")
        alone, held = alone + one, held + two
    assert style_of(alone) >= style_of(list(source)) + 0.2  # there is a style to keep
    assert style_of(held) >= 0.95 * style_of(alone)


def test_frame_by_frame_it_is_the_samplers_own_picture(nano, styled):
    """Beside ComfyUI's sampler on one frame, with the noise that its seed gives."""
    import comfy.sample

    from flux_atelier.core.style.structure import from_strength

    images = as_images(moving(2))
    ours = restyled(nano, styled, images, structure=0.0, **ALONE | {"noise": "fixed"})
    with torch.inference_mode():
        latent = nano[2].encode(images[1:])
        levels = from_strength(
            comfy.samplers.calculate_sigmas(styled.get_model_object("model_sampling"), "simple", 8), 0.6
        )
        words = host.condition(nano[1], CAPTION, 3.5)
        noise = comfy.sample.prepare_noise(latent, 3)
        euler = comfy.samplers.sampler_object("euler")
        theirs = comfy.sample.sample_custom(styled, noise, 1.0, euler, levels, words, words, latent, disable_pbar=True)
        theirs = nano[2].decode(theirs)
    assert (ours[1] - theirs[0]).abs().max() <= 1e-5


def test_the_model_is_left_as_it_was_and_reruns_are_the_same(nano, styled):
    with torch.inference_mode():
        before = drawn(styled, nano)
    images = as_images(moving(3))
    first = restyled(nano, styled, images, steps=4, anchor_every=2)
    again = restyled(nano, styled, images, steps=4, anchor_every=2)
    assert torch.equal(first, again)
    with torch.inference_mode():
        assert torch.equal(before, drawn(styled, nano))
    assert "sampler_post_cfg_function" not in styled.model_options


def test_any_size_alpha_and_prompts_by_shot(nano, styled, monkeypatch):
    from flux_atelier.nodes.host import clips

    images = torch.cat([as_images(moving(4))[:, :50, :37], torch.full((4, 50, 37, 1), 0.25)], -1)
    images[2:, ..., :3] = 1 - images[2:, ..., :3]
    said = []
    original = clips.condition
    monkeypatch.setattr(clips, "condition", lambda clip, words, guidance: said.append(words) or original(clip, words))
    used = []
    draw = clips.ClipPainter._drawn
    monkeypatch.setattr(
        clips.ClipPainter, "_drawn", lambda self, s, t, levels: used.append((s.shot, t)) or draw(self, s, t, levels)
    )
    out = restyled(nano, styled, images, prompt="one\n\n two \n", steps=2)
    assert out.shape == images.shape
    assert torch.equal(out[..., 3], images[..., 3])
    assert said == ["one", "two"]
    assert [shot for shot, _ in used] == [0, 0, 1, 1]
    assert used[0][1] is used[1][1] and used[2][1] is not used[1][1]


def test_no_frames_are_told(nano, styled):
    with pytest.raises(AtelierError, match="no frames"):
        restyled(nano, styled, torch.zeros(0, 64, 64, 3))


def test_warped_noise_steers_the_advanced_sampler(nano, styled):
    from flux_atelier.core.frames.warped_noise import warped_noise
    from flux_atelier.nodes.clips import WarpedNoiseNode

    source = moving(3)
    noise = run(WarpedNoiseNode, images=as_images(source), seed=7, finer=1).args[0]
    assert noise.seed == 7
    with torch.inference_mode():
        latent = nano[2].encode(as_images(source))
    made = noise.generate_noise({"samples": latent})
    assert made.shape == latent.shape
    assert torch.equal(made, torch.stack(list(warped_noise(source, (16, 8, 8), 7))))
    larger = noise.generate_noise({"samples": torch.zeros(3, 4, 12, 20)})
    assert larger.shape == (3, 4, 12, 20)
    with pytest.raises(AtelierError, match="2 pictures and the clip 3 frames"):
        noise.generate_noise({"samples": latent[:2]})
    with torch.inference_mode():
        from comfy_extras.nodes_custom_sampler import Guider_Basic, SamplerCustomAdvanced

        guider = Guider_Basic(styled)
        guider.set_conds(text(nano, scenes.Scene("square", "yellow", "medium", "in the center", "checkered", "purple")))
        out = SamplerCustomAdvanced.execute(
            noise, guider, comfy.samplers.sampler_object("euler"), sigmas(styled, 2), {"samples": latent}
        ).args[0]["samples"]
    assert out.shape == latent.shape and out.isfinite().all()
    with pytest.raises(AtelierError, match="no frames"):
        run(WarpedNoiseNode, images=torch.zeros(0, 8, 8, 3), seed=0, finer=1)


def test_stabilise_holds_a_drawn_clip_and_begins_anew_at_cuts(nano, styled):
    from flux_atelier.nodes.clips import StabiliseClip

    source = moving(6)
    wild = (source + torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.08).clamp(0, 1)
    options = dict(strength=0.9, detail=0.6)
    held = run(StabiliseClip, source=as_images(source), drawn=as_images(wild), **options).args[0]
    ours, theirs = (judge(list(source), clip).mean("warping") for clip in (frames_of(held), list(wild)))
    assert ours <= 0.2 * theirs
    cut = torch.cat([source[:3], 1 - source[3:]])
    node = run(StabiliseClip, source=as_images(cut), drawn=as_images(wild), **options)
    assert torch.equal(node.args[0][3], as_images(wild)[3])
    assert node.ui["text"] == ["2 shots"]
    same = run(StabiliseClip, source=as_images(source), drawn=as_images(wild), strength=0.0, detail=0.6).args[0]
    assert torch.equal(same, as_images(wild))
    with pytest.raises(AtelierError, match="one length"):
        run(StabiliseClip, source=as_images(source), drawn=as_images(wild[:4]), **options)


def test_stabilise_tells_of_other_lengths_and_sizes_before_it_looks_for_motion(monkeypatch):
    from flux_atelier.core.frames import stabilise
    from flux_atelier.nodes.clips import StabiliseClip

    looked = []
    monkeypatch.setattr(stabilise, "best_flow", lambda: lambda a, b: looked.append(a) or torch.zeros(2, *a.shape[1:]))
    images = as_images(moving(4))
    for clip, told in ((images[:3], "4 frames and the stylised clip 3"), (images[:, :60, :50], "64 x 64.* 50 x 60")):
        with pytest.raises(AtelierError, match=told):
            run(StabiliseClip, source=images, drawn=clip, strength=0.9, detail=0.6)
    assert not looked


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_stay_so_and_are_worked_on_in_single(nano, styled, kind):
    """As with ComfyUI's --fp16-intermediates."""
    from flux_atelier.nodes.clips import StabiliseClip, WarpedNoiseNode

    images = as_images(moving(3)).to(kind)
    half = restyled(nano, styled, images, steps=2)
    single = restyled(nano, styled, images.float(), steps=2)
    assert half.dtype == kind and torch.equal(half, single.to(kind))
    options = dict(strength=0.9, detail=0.6)
    single = run(StabiliseClip, source=images.float(), drawn=half.float(), **options).args[0]
    for source in (images, images.float()):
        held = run(StabiliseClip, source=source, drawn=half, **options).args[0]
        assert held.dtype == kind and torch.equal(held, single.to(kind))
    latent = {"samples": torch.zeros(3, 4, 8, 8)}
    noises = [run(WarpedNoiseNode, images=i, seed=7, finer=2).args[0] for i in (images, images.float())]
    assert torch.equal(*(noise.generate_noise(latent) for noise in noises))


def test_a_value_that_is_no_number_stays_in_its_place(nano, styled):
    from flux_atelier.nodes.clips import StabiliseClip, WarpedNoiseNode

    images = as_images(moving(4))
    hurt = images.clone()
    hurt[1, 20, 20, 0] = float("nan")
    assert restyled(nano, styled, hurt, steps=2).isfinite().all()
    for source, clip in ((hurt, images), (images, hurt)):
        assert run(StabiliseClip, source=source, drawn=clip, strength=0.9, detail=0.6).args[0].isfinite().all()
    noise = run(WarpedNoiseNode, images=hurt, seed=7, finer=1).args[0]
    assert noise.generate_noise({"samples": torch.zeros(4, 4, 8, 8)}).isfinite().all()


def test_a_drawn_frame_comes_to_where_its_start_is(monkeypatch):
    """A VAE may put pictures on another device than the graph's: only the device matters here, so nothing is drawn."""
    from types import SimpleNamespace

    from flux_atelier.core.frames.restyle import Sketch
    from flux_atelier.core.style.structure import layout_kept
    from flux_atelier.nodes.host import clips

    vae = SimpleNamespace(
        encode=lambda images: torch.zeros(1, 4, 2, 2), decode=lambda latent: torch.zeros(1, 16, 16, 3)
    )
    monkeypatch.setattr(clips, "in_model_scale", lambda model, latent: latent)
    monkeypatch.setattr(clips.comfy.sample, "sample_custom", lambda model, noise, *more, **named: noise)
    painter = clips.ClipPainter(None, None, vae, ("",), 3.5, 0.6, 4, layout_kept(0.0, 0.3, (16, 16)))
    frame = torch.empty(3, 16, 16, device="meta")
    made = painter._drawn(Sketch(frame, frame, torch.zeros(4, 2, 2), 0, 0), [], torch.ones(2))
    assert made.device == frame.device and made.dtype == torch.float32


def flickering(count=20, size=(48, 64)):
    rng = torch.Generator().manual_seed(2)
    base = torch.rand(3, *size, generator=rng) * 0.4 + 0.3
    base = torch.nn.functional.avg_pool2d(base[None], 5, 1, 2)[0]
    return torch.stack([base + torch.randn(1, 1, 1, generator=rng) * 0.04 for _ in range(count)])


DEFLICKER = dict(strength=1.0, window=9, contrast=True)


def unrest(frames):
    return flicker([f.mean().item() for f in frames])


def test_deflicker_evens_brightness_within_shots(comfyui):
    from flux_atelier.nodes.clips import Deflicker

    first = flickering(10)
    frames = torch.cat([first, 1 - flickering(10).flip(3) * 0.8])
    images = torch.cat([as_images(frames), torch.rand(20, 48, 64, 1)], -1)
    node = run(Deflicker, images=images, **DEFLICKER)
    assert node.ui["text"] == ["2 shots"]
    assert torch.equal(node.args[0][..., 3], images[..., 3])
    even = frames_of(node.args[0][..., :3])
    assert unrest(even[:10]) <= 0.2 * unrest(first)
    assert (even[10].mean() - even[9].mean()).abs() >= 0.8 * (frames[10].mean() - frames[9].mean()).abs()
    with pytest.raises(AtelierError, match="no frames"):
        run(Deflicker, images=torch.zeros(0, 8, 8, 3), **DEFLICKER)


def video(path):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path))


def beside(path):
    """What lies beside a video node's files."""
    folder = path / "output" / "flux_atelier" / "video"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("channels", [1, 2])
def test_grey_images_are_worked_on_as_three_alike(comfyui, channels):
    from flux_atelier.nodes.clips import Deflicker, StabiliseClip
    from flux_atelier.nodes.color import TransferColor

    grey = torch.rand(4, 32, 48, channels, generator=torch.Generator().manual_seed(0))
    three = torch.cat([grey[..., :1].expand(-1, -1, -1, 3), grey[..., 1:]], -1)
    red = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.2, 0.2])
    for node, given in (
        (Deflicker, lambda images: dict(images=images, strength=1.0, window=9, contrast=True)),
        (StabiliseClip, lambda images: dict(source=images, drawn=images, strength=0.9, detail=0.6)),
        (TransferColor, lambda images: dict(images=images, reference=red, strength=1.0)),
    ):
        made = run(node, **given(grey))[0]
        assert made.shape == (4, 32, 48, 3 + channels - 1)
        assert torch.allclose(made, run(node, **given(three))[0], atol=1e-4)


def test_deflicker_video_streams_with_its_sound(folders, tmp_path):
    from flux_atelier.nodes.clips import DeflickerVideo

    sounding, source = film(tmp_path / "sound.mp4", Fraction(24), 20), tmp_path / "a.mp4"
    write_video(source, iter(flickering()), Fraction(24), sound=sounding)
    out = run(DeflickerVideo, video=video(source), name="even", **DEFLICKER).args[0].get_stream_source()
    assert out.startswith(str(folders / "output" / "flux_atelier" / "video" / "even-"))
    assert unrest(read_frames(out)) <= 0.2 * unrest(read_frames(source))
    assert packets(out) == packets(source)
    assert probe(out).frames == 20 and probe(out).rate == 24


def cancel_after(monkeypatch, calls):
    """A person's cancel, at a call of the check."""
    seen = []

    def check():
        seen.append(1)
        if len(seen) > calls:
            raise memory.InterruptProcessingException

    monkeypatch.setattr(memory, "throw_exception_if_processing_interrupted", check)


def test_a_cancelled_deflicker_leaves_nothing(folders, tmp_path, monkeypatch):
    from flux_atelier.nodes.clips import DeflickerVideo

    write_video(tmp_path / "a.mp4", iter(flickering()), Fraction(24))
    before = beside(folders)
    for calls in (5, 30):
        with monkeypatch.context() as patched:
            cancel_after(patched, calls)
            with pytest.raises(memory.InterruptProcessingException):
                run(DeflickerVideo, video=video(tmp_path / "a.mp4"), name="gone", **DEFLICKER)
        assert beside(folders) == before


def test_names_that_lead_out_are_refused(comfyui):
    from flux_atelier.nodes.clips import DeflickerVideo
    from flux_atelier.nodes.restyling import RestyleVideo

    for node in (DeflickerVideo, RestyleVideo):
        assert "leads out" in node.validate_inputs(name="../../out")
        assert node.validate_inputs(name="") is True


def film_inputs(nano, styled, source, **changes):
    values = dict(prompt=CAPTION, strength=0.6, structure=0.3, seed=3, steps=3, guidance=3.5)
    values |= RestyleOptions().model_dump() | dict(longest_side=0, first_frame=0, frames=0, name="painted")
    return dict(video=video(source), model=styled, clip=nano[1], vae=nano[2]) | values | changes


def test_restyle_video_goes_on_where_it_stopped(nano, styled, folders, tmp_path, monkeypatch):
    from flux_atelier.nodes.host import clips
    from flux_atelier.nodes.restyling import RestyleVideo

    sounding, source = film(tmp_path / "sound.mp4", Fraction(12), 8), tmp_path / "a.mp4"
    write_video(source, iter(moving(8)), Fraction(12), sound=sounding)
    given = film_inputs(nano, styled, source)
    numbers, draw = [], clips.ClipPainter._drawn

    def counted(self, sketch, *more):
        if sketch.number == 5 and 5 not in numbers:
            numbers.append(5)
            raise memory.InterruptProcessingException
        numbers.append(sketch.number)
        return draw(self, sketch, *more)

    monkeypatch.setattr(clips.ClipPainter, "_drawn", counted)
    with pytest.raises(memory.InterruptProcessingException):
        run(RestyleVideo, **given)
    (partial,) = (n for n in beside(folders) if n.startswith("painted-") and n.endswith(".partial.mp4"))
    assert len(shown(folders / "output" / "flux_atelier" / "video" / partial)) == 5
    numbers.clear()
    numbers.append(5)
    node = run(RestyleVideo, **given)
    assert numbers[1:] == [5, 6, 7]
    out = node.args[0].get_stream_source()
    assert probe(out).frames == 8 and probe(out).rate == 12
    assert packets(out) == packets(source)
    assert [n for n in beside(folders) if n.startswith("painted-")] == [out.rsplit("/", 1)[1]]
    numbers.clear()
    again = run(RestyleVideo, **given)
    assert again.args[0].get_stream_source() == out and not numbers
    other = run(RestyleVideo, **given | {"seed": 4, "frames": 2})
    assert other.args[0].get_stream_source() != out and numbers == [0, 1]


def test_restyle_video_works_at_another_size_on_a_part(nano, styled, tmp_path):
    from flux_atelier.nodes.restyling import RestyleVideo

    source = tmp_path / "a.mp4"
    write_video(source, iter(moving(6, 96)[:, :, :60]), Fraction(12))
    given = film_inputs(nano, styled, source, longest_side=72, first_frame=2, frames=2, steps=2, name="")
    out = run(RestyleVideo, **given).args[0].get_stream_source()
    made = probe(out)
    assert (made.width, made.height, made.frames) == (72, 46, 2)  # 72 x 45 cut from 80 x 48; H.264 wants even sides
    assert "/a-" in out
    with pytest.raises(AtelierError, match="no frame 9"):
        run(RestyleVideo, **given | {"first_frame": 9})


def test_a_run_goes_on_only_with_what_draws_the_same(nano, styled):
    from flux_atelier.core.style.structure import StructureOptions
    from flux_atelier.nodes.host.clips import ClipPainter
    from flux_atelier.nodes.host.editing import guide_structure

    def key(model=styled, words=("a",), strength=0.5, structure=StructureOptions()):  # noqa: B008
        return ClipPainter(model, nano[1], nano[2], words, 3.5, strength, 8, structure).key()

    with torch.inference_mode():
        weaker = host.with_lora(nano[0], read_tensors(nano_files.PAINTED)[0], 0.9)
        guided = guide_structure(styled, torch.ones(1, 16, 8, 8), StructureOptions())
        others = [key(nano[0]), key(weaker), key(guided), key(words=("b",)), key(words=("a", "a"))]
        others += [key(strength=0.6), key(structure=StructureOptions(amount=0.1))]
        assert key() == key(styled.clone())
        assert len({key(), *others}) == 8
