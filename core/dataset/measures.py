"""What can be told of one picture by itself: sharpness, noise, exposure, bars, detail, colour; raw numbers only.

Thresholds belong to whoever reads the numbers, so a picture is measured once. numpy and PIL are enough: on a CPU they
are faster for such scalars than tensors are. Sharpness is measured at about the size of training, where it counts;
noise and resolution on the pixels as they are, since scaling hides both.
"""

import numpy as np
from PIL import Image

SIDE = 512  # pixels: the longer side for sharpness, light and colour
TILE = 64  # pixels of a sharpness tile
NOISE_TILE = 32
NATIVE = 768  # pixels: the side of the middle part in which noise and resolution are measured
TONES = 255.0
FALL = 11  # dB
ROUNDING = 20 / 12  # energy of the Laplacian (squared weights: 20) of rounding to whole levels (variance 1/12)


def measure(image: Image.Image) -> dict[str, float]:
    """Measure a picture.

    image  any mode and size; read as RGB
    ->     sharpness     0..1, share of fine detail lost in one more blur, in the sharpest tiles: a soft background is no fault
           sharp_global  >= 0, standard deviation of the Laplacian in grey levels, the whole picture
           sharp_tile    >= 0, the same, 90th percentile of tiles
           noise         >= 0, standard deviation per channel in grey levels of 255
           exposure      0..1, mean brightness
           clipped_low, clipped_high  0..1, share of pixels whose brightness is at most 2, at least 253 of 255
           contrast      0..1, brightness from the 1st to the 99th percentile
           letterbox     0..1, share of the area in even bars along the edges
           entropy       0..8 bits per pixel of brightness; below about 4 there is little to learn
           resolution    0..1, highest frequency with detail over the highest possible; an enlarged picture has less
           colourfulness >= 0 (Hasler and Suesstrunk 2003); 0 grey, about 30 plain, above 80 vivid
           mean_red, mean_green, mean_blue  0..1
    """
    whole = image if image.mode == "RGB" else image.convert("RGB")
    small = shrunk(whole)
    return measure_both(whole, small, small.convert("L"))


def shrunk(image: Image.Image) -> Image.Image:
    """A picture no longer than 512 pixels on a side: itself where it is small enough.

    Whole pixels are averaged before the last step, which is 0.3 of the work of one cubic step.
    """
    scale = max(image.size) / SIDE
    if scale <= 1:
        return image
    size = tuple(max(1, round(side / scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1)


def measure_both(whole: Image.Image, small: Image.Image, grey: Image.Image) -> dict[str, float]:
    """Measure a picture that has been shrunk already; see measure.

    whole  RGB
    small  from shrunk
    grey   the same as L
    """
    pixels = np.asarray(small)
    green = np.asarray(_middle(whole).getchannel("G"))
    return (
        sharpness(np.asarray(grey))
        | {"noise": noise(green), "resolution": resolution(green)}
        | light(np.array(grey.histogram()))
        | {"letterbox": letterbox(pixels)}
        | colour(pixels[::2, ::2])
    )


def _middle(image: Image.Image) -> Image.Image:
    width, height = (min(side, NATIVE) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _laplacian(grey: np.ndarray) -> np.ndarray:
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1]
    edges += grey[1:-1, :-2]
    edges += grey[1:-1, 2:]
    edges -= 4 * grey[1:-1, 1:-1]
    return edges


def _smoothed(edges: np.ndarray) -> np.ndarray:
    """Binomial blur 1 4 6 4 1 along both axes, times 256, as pairs added four times; four rows and columns fewer.

    edges  int16 in -1020..1020: sums of 32 stay in 16 bits, of which a processor adds many at once
    ->     int32
    """
    for _ in range(4):
        edges = edges[:, :-1] + edges[:, 1:]
    edges = (edges[:-1] + edges[1:]).astype(np.int32)
    for _ in range(3):
        edges = edges[:-1] + edges[1:]
    return edges


def _tile_means(values: np.ndarray, side: int) -> np.ndarray:
    """Means of whole square tiles, [rows, columns]; of everything where not even one fits."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    if not rows or not columns:
        return values.mean(keepdims=True)
    cut = values[: rows * side, : columns * side].reshape(rows, side, columns * side)
    return cut.mean(1).reshape(rows, columns, side).mean(2)


def sharpness(grey: np.ndarray) -> dict[str, float]:
    """Sharpness by re-blur (after Crete et al. 2007) and by the Laplacian (Pech-Pacheco et al. 2000).

    grey  [H, W] whole levels in 0..255
    ->    sharpness, sharp_global, sharp_tile; see measure
    """
    if min(grey.shape) < 12:
        return {"sharpness": 0.0, "sharp_global": 0.0, "sharp_tile": 0.0}
    levels = _laplacian(grey.astype(np.int16))
    again = _smoothed(levels).astype(np.float32)  # the blur and the Laplacian may change places
    edges = levels.astype(np.float32)
    before = _tile_means(edges[2:-2, 2:-2] ** 2, TILE).ravel()
    after = _tile_means(np.square(again, out=again), TILE).ravel() / 256**2
    # The most detailed tiles tell; rounding to whole grey levels is no detail.
    telling = before >= max(2 * ROUNDING, 0.25 * float(np.quantile(before, 0.95)))
    detail = float((before[telling] - ROUNDING).sum())
    left = float(after[telling].sum()) / detail if detail > 0 else 1.0
    # What is hardly more than rounding tells little: a strongly blurred picture has nothing else.
    sure = detail / (detail + ROUNDING * int(telling.sum())) if detail > 0 else 0.0
    return {
        "sharpness": sure * max(0.0, 1 - float(np.sqrt(left))),
        "sharp_global": float(edges.std()),
        "sharp_tile": float(np.sqrt(np.quantile(before, 0.9))),
    }


def noise(channel: np.ndarray) -> float:
    """Standard deviation of the noise in one channel (Immerkaer 1996), from its calmest tiles.

    One channel is measured, not the brightness: mixing three channels averages their noise to 0.67 of itself.

    channel  [H, W] whole levels in 0..255, never scaled
    ->       >= 0, grey levels
    """
    if min(channel.shape) < 3:
        return 0.0
    levels = channel.astype(np.int16)
    across = levels[:, :-2] + levels[:, 2:]
    across -= 2 * levels[:, 1:-1]
    mask = across[:-2] + across[2:]
    mask -= 2 * across[1:-1]
    sigma = np.sqrt(np.pi / 2) / 6 * _tile_means(np.abs(mask).astype(np.float32), NOISE_TILE).ravel()
    # Where tones are cut off, so is the noise.
    inner = channel[1:-1, 1:-1]
    cut = _tile_means(((inner < 1) | (inner > TONES - 1)).astype(np.float32), NOISE_TILE).ravel()
    whole = sigma[cut < 0.02]
    return float(np.quantile(whole if whole.size else sigma, 0.2))


def light(counts: np.ndarray) -> dict[str, float]:
    """Exposure, clipping, contrast and entropy (Shannon 1948) from one histogram; see measure.

    counts  [256], pixels of each brightness
    """
    share = counts / counts.sum()
    total = np.cumsum(share)
    low, high = np.searchsorted(total, 0.01), np.searchsorted(total, 0.99)
    held = share[share > 0]
    return {
        "exposure": float(share @ np.arange(256) / TONES),
        "clipped_low": float(total[2]),
        "clipped_high": float(share[253:].sum()),
        "contrast": float((high - low) / TONES),
        "entropy": float(abs(-(held * np.log2(held)).sum())),
    }


def letterbox(pixels: np.ndarray) -> float:
    """Share of a picture in even bars along its edges.

    A bar ends in a straight line, where at least a third of the next pixels differ; an even background around a subject
    does not, so a product on white has no bars.

    pixels  [H, W, 3] in 0..255
    """
    turned = pixels.swapaxes(0, 1)
    top, bottom, left, right = (_bar(values) for values in (pixels, pixels[::-1], turned, turned[::-1]))
    height, width = pixels.shape[:2]
    return float(1 - (height - top - bottom) * (width - left - right) / (height * width))


def _bar(values: np.ndarray, tolerance: int = 12) -> int:
    """Rows of a bar at the first edge, 0 where there is none or all is one colour."""
    tone = np.median(values[0], axis=0).astype(np.int16)
    if _uneven(values[:1], tone, tolerance)[0] > 0.02:
        return 0
    half = len(values) // 2
    share = _uneven(values[: half + 3], tone, tolerance)
    rows = int(np.argmax(share > 0.02))
    if rows < max(2, len(values) // 100) or rows >= half:
        return 0
    return rows if share[rows : rows + 3].max() >= 1 / 3 else 0


def _uneven(values: np.ndarray, tone: np.ndarray, tolerance: int) -> np.ndarray:
    """Share of every row's pixels that differ from a colour."""
    red, green, blue = (np.abs(values[..., i].astype(np.int16) - tone[i]) for i in range(3))
    return (np.maximum(np.maximum(red, green), blue) > tolerance).mean(1)


def resolution(channel: np.ndarray) -> float:
    """Highest frequency that holds detail, over the highest the pixels could hold (Nyquist).

    Natural pictures lose power with the square of the frequency (Field 1987); an enlarged one falls off a cliff where
    the small one's pixels ended. The first fall of 11 dB below that law counts.

    channel  [H, W] whole levels in 0..255, never scaled
    ->       0..1
    """
    side = min(channel.shape)
    if side < 32 or channel[::4, ::4].std() < 1:
        return 0.0
    power = _spectrum(channel[:side, :side].astype(np.float32))
    middle = (np.arange(len(power)) + 0.5) / len(power)
    flattened = 10 * np.log10(power * middle**2 + 1e-9)
    known = np.median(flattened[(middle > 0.08) & (middle < 0.25)])
    if known < 0:
        return 0.0
    dead = (flattened < known - FALL) & (middle > 0.2)
    # One bin alone may dip by chance.
    ends = np.flatnonzero(dead & np.append(dead[1:], True))
    return float(ends[0] / len(power)) if ends.size else 1.0


def _spectrum(square: np.ndarray, bins: int = 32) -> np.ndarray:
    """Mean power along both axes by frequency, [bins] from 0 to Nyquist, through a Hann window."""
    from scipy.fft import rfft  # transforms several lines at once, which numpy's does not

    side = len(square)
    window = np.hanning(side).astype(np.float32)
    total = np.zeros(side // 2 + 1, np.float64)
    for lines in (square[:: max(1, side // 128)], square.T[:: max(1, side // 128)]):
        found = np.asarray(rfft((lines - lines.mean(1, keepdims=True)) * window, axis=1, overwrite_x=True))
        total += (np.real(found) ** 2 + np.imag(found) ** 2).mean(0)
    edges = np.linspace(0, len(total), min(bins, len(total)) + 1).astype(int)  # tiny pictures have fewer
    # Rounding to whole levels leaves a floor that is no detail.
    floor = 2 * float((window**2).sum()) / 12
    return np.maximum(np.add.reduceat(total, edges[:-1]) / np.diff(edges) - 1.5 * floor, 0)


def colour(pixels: np.ndarray) -> dict[str, float]:
    """Colourfulness (Hasler and Suesstrunk 2003, M3) and the mean colour; pixels [H, W, 3] in 0..255; see measure."""
    red, green, blue = (pixels[..., i].astype(np.float32) for i in range(3))
    first, second = red - green, (red + green) / 2 - blue
    means = [float(c.mean()) / TONES for c in (red, green, blue)]
    spread = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    return {"colourfulness": float(spread)} | dict(zip(("mean_red", "mean_green", "mean_blue"), means, strict=True))
