"""What workflows name and no repository holds: an empty file for each large model, a photo and a video, in a server's folders."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

MODELS = {  # where each file that a loader names lies below models/, by node and input
    ("UNETLoader", "unet_name"): "diffusion_models",
    ("DualCLIPLoader", "clip_name1"): "text_encoders",
    ("DualCLIPLoader", "clip_name2"): "text_encoders",
    ("VAELoader", "vae_name"): "vae",
    ("LoraLoaderModelOnly", "lora_name"): "loras",
    ("ControlNetLoader", "control_net_name"): "controlnet",
    ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("StyleModelLoader", "style_model_name"): "style_models",
    ("UpscaleModelLoader", "model_name"): "upscale_models",
}
SIZE = 96, 64  # pixels of a photo


def place(base: Path, prompts: Iterable[dict]) -> None:
    """Put what prompts name into a server's base directory."""
    for node in (node for prompt in prompts for node in prompt.values()):
        for key, value in node["inputs"].items():
            if folder := MODELS.get((node["class_type"], key)):
                (base / "models" / folder).mkdir(exist_ok=True)
                (base / "models" / folder / value).touch()
            elif (node["class_type"], key) == ("LoadImage", "image"):
                photo(SIZE).save(base / "input" / value)
            elif (node["class_type"], key) == ("LoadVideo", "file"):
                clip(base / "input" / value)


def photo(size: tuple[int, int]) -> Image.Image:
    """A sun over hills, a third of it transparent, as a mask editor leaves it."""
    width, height = size
    picture = Image.linear_gradient("L").resize(size)
    picture = Image.merge(
        "RGB", (picture.point(lambda v: 255 - v // 3), picture.point(lambda v: 120 + v // 3), picture)
    )
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.55, height * 0.15, width * 0.8, height * 0.5), fill="#ffd34d")
    draw.polygon([(0, height), (width * 0.3, height * 0.5), (width * 0.6, height)], fill="#35624a")
    draw.polygon([(width * 0.3, height), (width * 0.75, height * 0.6), (width, height)], fill="#274b3a")
    alpha = Image.new("L", size, 255)
    alpha.paste(0, (0, 0, width // 3, height))
    picture.putalpha(alpha)
    return picture


def clip(path: Path, seconds: int = 1, rate: int = 24) -> None:
    """Write a video of a sun that moves, each fourth frame darker, with a tone."""
    import av
    import numpy as np

    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264", rate=rate)
        picture.width, picture.height, picture.pix_fmt = *SIZE, "yuv420p"
        sound = out.add_stream("aac", rate=48_000)
        sound.layout = "mono"
        for number in range(seconds * rate):
            frame = np.asarray(photo((SIZE[0] * 2, SIZE[1])).convert("RGB"))[:, 2 * number : 2 * number + SIZE[0]]
            frame = (frame * (0.85 if number % 4 == 0 else 1.0)).astype(np.uint8)
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        tone = np.sin(np.arange(seconds * 48_000) * 440 * 2 * np.pi / 48_000).astype(np.float32)[None]
        told = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        told.sample_rate = 48_000
        out.mux(sound.encode(told))
        for stream in (picture, sound):
            out.mux(stream.encode(None))
