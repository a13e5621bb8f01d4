"""Which source frames make an output frame, and at which time between them: exact, in fractions of a second.

A frame lasts from its own time to that of the next one. Output frame k stands k / rate after the first source frame,
so a clip of n frames at rate s becomes ceil(n * rate / s) frames and lasts as long as before, to within one frame.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Generic, TypeVar

from ..errors import AtelierError
from .cuts import Change

# Broadcast rates are written with two or three decimals and mean these.
BROADCAST = {
    f"{float(rate):.{digits}f}": rate
    for rate in (Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240))
    for digits in (2, 3)
}
FASTEST = 1000  # frames a second
LONGEST_RATE = 24  # characters; of more digits, or of an exponent, an exact fraction takes for ever
LONGEST_REPEAT = 3  # how often a frame is shown again at most before it is taken for a pause

Source = TypeVar("Source")


@dataclass(frozen=True)
class Wanted(Generic[Source]):
    """One output frame: its number, the two source frames it stands between, and where, 0 <= time < 1.

    With time 0 it is the first source frame itself.
    """

    number: int
    first: Source
    second: Source
    time: Fraction


def parse_rate(text: str, source: Fraction | None = None) -> Fraction:
    """Read a frame rate as people write it.

    text    "60", "60000/1001", "59.94" (a broadcast rate, also with all its decimals), or "2x" for twice the source's
    source  frames per second, for the last form
    Raises AtelierError if the text says no rate above 0 and up to 1000.
    """
    word = text.strip().lower()
    try:
        if len(word) > LONGEST_RATE or "e" in word:
            raise ValueError
        if word.endswith("x") and source is not None:
            rate = source * Fraction(word[:-1])
        else:
            more = len(word.partition(".")[2]) > 3  # a rate that a machine has worked out: 23.976023976
            rate = BROADCAST.get(f"{float(word):.3f}" if more else word) or Fraction(word)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= FASTEST:
        forms = "60, 59.94, 60000/1001" + (" or 2x" if source is not None else "")
        raise AtelierError(f"{text!r} is no frame rate up to {FASTEST}. Write frames per second such as {forms}.")
    return rate


def frame_count(frames: int, source: Fraction, target: Fraction, loop: bool = False) -> int:
    """Number of output frames.

    frames          source frames
    source, target  frames per second
    loop            the clip's end leads back to its beginning, so its length is rounded to whole frames
    """
    exact = frames * target / source
    return max(1, round(exact)) if loop and frames else ceil(exact)


def loop_rate(frames: int, source: Fraction, target: Fraction) -> Fraction:
    """Rate at which a loop of `frames` is sampled so that whole output frames fill it evenly.

    Shown at the target rate, the loop lasts as long as before to within half an output frame.
    """
    return frame_count(frames, source, target, True) * source / frames


def instants(start: Fraction, stop: Fraction, rate: Fraction) -> Iterator[tuple[int, Fraction]]:
    """Output frames from `start` up to but without `stop`: number, and time as a share of the way.

    start, stop  seconds after the first source frame, start < stop
    rate         output frames per second
    """
    for number in range(ceil(start * rate), ceil(stop * rate)):
        yield number, (number / rate - start) / (stop - start)


def schedule(
    stamped: Iterable[tuple[Fraction, Source]],
    target: Fraction,
    last: Fraction,
    change: Callable[[Source, Source], Change],
    longest_repeat: int = 0,
) -> Iterator[Wanted[Source]]:
    """Plan output frames from a stream of source frames, of which at most three are held.

    Before a cut a frame is held until the cut. A frame that is shown again and then moves on takes its whole time for
    moving, so that motion drawn on twos becomes even; one that is repeated more often pauses before it moves.

    stamped         (seconds, frame), in order of time
    target          output frames per second
    last            seconds the last frame lasts
    change          what a frame is to an earlier one
    longest_repeat  repeats that are taken for motion; 0 leaves repeated frames where they are
    Raises AtelierError if time does not go on.
    """
    origin, key_time, key = None, Fraction(0), None
    repeat_time, repeats, again = Fraction(0), 0, None
    for stamp, frame in stamped:
        if origin is None or key is None:
            origin, key = stamp, frame
            continue
        now = stamp - origin
        if now <= max(key_time, repeat_time):
            raise AtelierError(f"A frame stands at {float(stamp):g} s, not after the one before. Check the file.")
        kind = change(key, frame)
        if kind is Change.REPEAT and longest_repeat:
            repeat_time, repeats, again = now, repeats + 1, frame
            continue
        if again is not None and repeats > longest_repeat:
            yield from _held(key_time, repeat_time, target, key)
            key_time, key = repeat_time, again
        if kind is Change.CUT:
            yield from _held(key_time, now, target, key)
        else:
            for number, time in instants(key_time, now, target):
                yield Wanted(number, key, frame, time)
        key_time, key = now, frame
        repeat_time, repeats, again = now, 0, None
    if key is not None:
        yield from _held(key_time, max(key_time, repeat_time) + last, target, key)


def _held(start: Fraction, stop: Fraction, rate: Fraction, frame: Source) -> Iterator[Wanted[Source]]:
    for number, _ in instants(start, stop, rate):
        yield Wanted(number, frame, frame, Fraction(0))


def even_stamps(frames: Iterable[Source], rate: Fraction) -> Iterator[tuple[Fraction, Source]]:
    """Give frames of a constant rate their times in seconds."""
    for number, frame in enumerate(frames):
        yield number / rate, frame
