"""Two ways to split videos: whole groups of them are held out, or the end of each file."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from telecine.data.clip_frames import ClipFrames
from telecine.data.source import Source, Span, resolve_source
from telecine.data.spacing import evenly_spaced

# With this many videos or more, whole groups of them are held out, instead of the end of each.
MIN_VIDEOS = 10
MAX_FRACTION = 0.3  # of all frames; a larger held-out part is warned about
# Numbers of groups that are tried around the expected one, to come close to the fraction of frames.
_NUM_TRIED = 5


@dataclass
class Split:
    """Spans to train on, and held-out spans."""

    train: list[Span] = field(default_factory=list)
    held_out: list[Span] = field(default_factory=list)
    train_ends: dict[Source, int] = field(default_factory=dict)
    """Of each file with held-out frames, the first frame that is not trained on."""

    def train_on_short_spans(self, spans: Sequence[Span], frames: ClipFrames) -> None:
        """Train on spans that are too short for a validation clip, up to the `train_ends` of their files.

        They may be long enough for a training clip of another size.

        Args:
            spans: All spans that are split.
            frames: The frames of a validation clip.
        """
        for span in spans:
            if frames.fits(span):
                continue
            end = self.train_ends.get(resolve_source(span.info.source), span.last_frame + 1)
            if span.first_frame < end:
                self.train.append(replace(span, last_frame=min(span.last_frame, end - 1)))


def hold_out_groups(
    groups: Sequence[Sequence[Span]], chosen: Collection[int], frames: ClipFrames
) -> Split:
    """Hold out whole groups.

    Args:
        groups: The spans of each group.
        chosen: The indices of the groups to hold out.
        frames: The frames of a validation clip. Spans that are too short for one are left out.
    """
    split = Split()
    for index, group in enumerate(groups):
        long_enough = [span for span in group if frames.fits(span)]
        if index not in chosen:
            split.train.extend(long_enough)
            continue
        split.held_out.extend(long_enough)
        for span in group:
            split.train_ends[resolve_source(span.info.source)] = 0
    return split


def hold_out_ends(
    files: Sequence[Sequence[Span]],
    val_fraction: float,
    frames: ClipFrames,
    *,
    has_gap: bool = True,
) -> Split | None:
    """Hold out the end of each file that is long enough for a clip in each part; None if no file is.

    Args:
        files: The spans of each file, and of its copies.
        val_fraction: The fraction of frames to hold out.
        frames: The frames of a validation clip.
        has_gap: Whether the frames of one clip before the held-out ones are not used at all.
    """
    split = Split()
    for file in files:
        spans = [span for span in file if frames.fits(span)]
        if not spans:
            continue
        numbers: set[int] = set()
        for span in spans:
            numbers.update(range(span.first_frame, span.last_frame + 1))
        last = max(spans, key=lambda span: span.last_frame)
        last_start = last.first_frame + frames.num_starts(last) - 1
        cut = min(last_start, last.last_frame + 1 - round(len(numbers) * val_fraction))
        gap = frames.num_source_frames(last.info) if has_gap else 0
        before = [replace(span, last_frame=min(span.last_frame, cut - gap - 1)) for span in spans]
        after = [replace(span, first_frame=max(span.first_frame, cut)) for span in spans]
        before = [span for span in before if frames.fits(span)]
        after = [span for span in after if frames.fits(span)]
        if not before:
            split.train.extend(spans)
            continue
        split.train.extend(before)
        split.held_out.extend(after)
        if after:
            train_end = min(span.first_frame for span in after) - gap
            for span in file:
                split.train_ends[resolve_source(span.info.source)] = train_end
    return split if split.held_out else None


def choose_groups(groups: Sequence[Sequence[Span]], val_fraction: float) -> set[int]:
    """Return the indices of groups to hold out, evenly spaced, with a number of frames close to the fraction."""
    num_expected = max(1, round(len(groups) * val_fraction))
    lengths = [sum(span.num_frames for span in group) for group in groups]
    aim = val_fraction * sum(lengths)
    choices = []
    smallest = max(1, num_expected - _NUM_TRIED)
    largest = min(len(groups) - 1, num_expected + _NUM_TRIED)
    for num_held_out in range(smallest, largest + 1):
        choices.append(evenly_spaced(len(groups), num_held_out))
    errors = [abs(sum(lengths[index] for index in choice) - aim) for choice in choices]
    best = choices[errors.index(min(errors))]
    num_frames = sum(lengths[index] for index in best)
    errors_alone = [abs(length - aim) for length in lengths]
    is_too_large = num_frames > max(MAX_FRACTION * sum(lengths), aim)
    if is_too_large and min(errors_alone) < min(errors):
        best = [errors_alone.index(min(errors_alone))]
    return set(best)
