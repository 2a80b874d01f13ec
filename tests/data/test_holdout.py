"""Held-out spans share no frame with training spans, nor, where it is known, anything similar."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.data import DataError, Span, TarMember
from telecine.data.holdout import split_table
from telecine.data.holdout_summary import describe_held_out, warn_of_held_out
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

from .indexed import image, images, video, videos
from .indexed import split_videos as split_by_config


def frames(spans):
    return {
        (str(span.info.source), frame)
        for span in spans
        for frame in range(span.first_frame, span.last_frame + 1)
    }


def ranges(spans):
    return [(span.first_frame, span.last_frame) for span in spans]


def names(spans):
    return [span.info.source.name for span in spans]


def split_videos(spans, val_fraction, num_frames, holdout="auto"):
    config = ClipConfig(num_frames, val_fraction=val_fraction, holdout=holdout)
    return split_by_config(spans, config)


def split_ranges(spans, val_fraction, num_frames, holdout="auto"):
    train, held_out = split_videos(spans, val_fraction, num_frames, holdout)
    return ranges(train), ranges(held_out)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=14),
    fraction=st.floats(0.01, 0.5),
    num_frames=st.integers(1, 20),
    holdout=st.sampled_from(["auto", "file", "earlier"]),
)
@pytest.mark.slow
def test_spans_are_disjoint_and_long_enough(lengths, fraction, num_frames, holdout):
    spans = videos(*lengths)
    try:
        train, held_out = split_videos(spans, fraction, num_frames, holdout)
    except DataError:
        usable = [length for length in lengths if length >= num_frames]
        assert len(usable) < (10 if holdout == "earlier" else 2)
        for length in usable:  # no room for a training clip and a gap before what is held out
            assert length - max(num_frames, round(length * fraction)) < 2 * num_frames
        return
    assert train
    assert held_out
    assert not frames(train) & frames(held_out)
    # Videos too short for a validation clip are kept for training, where a clip of another size may fit.
    left_out = frames(spans) - frames(train) - frames(held_out)
    for span in held_out:
        if holdout != "earlier" and span.first_frame > 0:
            left_out -= {
                (str(span.info.source), span.first_frame - 1 - number)
                for number in range(num_frames)
            }
    assert not left_out
    assert all(span.num_frames >= min(num_frames, span.info.num_frames) for span in train)
    assert all(span.num_frames >= num_frames for span in held_out)
    assert (train, held_out) == split_videos(spans, fraction, num_frames, holdout)


@pytest.mark.parametrize("holdout", ["auto", "file", "earlier"])
@pytest.mark.parametrize("kind", [images, lambda count: videos(*[30] * count)])
def test_many_files_are_held_out_whole(kind, holdout):
    train, held_out = split_videos(kind(20), 0.1, 9, holdout)
    assert [Path(name).stem for name in names(held_out)] == ["5", "15"]
    assert len(train) == 18
    assert len(split_videos(kind(10), 0.01, 9, holdout)[1]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "film{film}_scene{scene}.mp4",
        "film_{film}-Scene-{scene:03}.mp4",
        "film{film}/{scene:04}.mp4",
        "v_{film:02}_c{scene}.mp4",
        "clips/{film}_{scene}.png",
        "shards/{film:06}/a/{scene}.mp4",
    ],
)
@pytest.mark.parametrize("num_films", [5, 30])
def test_files_whose_names_begin_alike_are_on_one_side(path, num_films):
    spans = []
    for film in range(num_films):
        for scene in range(4):
            name = path.format(film=film + 7, scene=scene)
            spans.append(image(name) if name.endswith("png") else video(name))
    train, held_out = split_videos(spans, 0.1, 9)
    assert len(train) + len(held_out) == len(spans)
    assert len(held_out) == 4 * max(1, num_films // 10)

    def films(part):
        return {spans.index(span) // 4 for span in part}

    assert not films(train) & films(held_out)
    assert films(split_videos(spans, 0.1, 9, "file")[1]) & films(
        split_videos(spans, 0.1, 9, "file")[0]
    )


def test_names_that_tell_nothing_leave_files_alone():
    for pattern in ("{}.mp4", "IMG_{:04}.mp4", "folder/film{}.mp4"):
        spans = [video(pattern.format(number)) for number in range(20)]
        assert split_videos(spans, 0.1, 9) == split_videos(spans, 0.1, 9, "file")


@pytest.mark.parametrize("holdout", ["auto", "column:subject"])
def test_spans_of_one_value_of_a_column_are_on_one_side(holdout):
    spans = [
        replace(span, group=str(number % 12)) for number, span in enumerate(videos(*[30] * 48))
    ]
    train, held_out = split_videos(spans, 0.1, 9, holdout)
    assert len(held_out) == 4
    assert not {span.group for span in train} & {span.group for span in held_out}
    two = [replace(span, group="ab"[number]) for number, span in enumerate(videos(30, 30))]
    assert split_videos(two, 0.1, 9, "column:subject") == (two[:1], two[1:]), "few groups, too"


def test_a_file_with_two_values_of_a_column_is_in_one_group():
    spans = [replace(span, group=str(number)) for number, span in enumerate(videos(*[30] * 12))]
    spans += [replace(spans[5], group="6", first_frame=15)]
    for fraction in (0.1, 0.2, 0.3, 0.4, 0.5):
        train, held_out = split_videos(spans, fraction, 9)
        assert not set(names(train)) & set(names(held_out))
        assert ({"5.mp4", "6.mp4"} <= set(names(held_out))) == ("6.mp4" in names(held_out))


def test_folders_are_held_out():
    spans = [video(f"{folder}/{name}.mp4") for folder in "abc" for name in "defg"]
    train, held_out = split_videos(spans, 0.1, 9, "folder")
    assert {span.info.source.parent.name for span in held_out} == {"b"}
    assert len(train) == 8


def test_folders_are_those_of_links_and_not_of_files_that_they_lead_to(tmp_path):
    """As in a cache of the Hub, whose files are links to one folder of files named by hashes."""
    spans = []
    for number in range(12):
        link = tmp_path / "abc"[number // 4] / f"{number}.mp4"
        link.parent.mkdir(exist_ok=True)
        target = tmp_path / "files" / f"{number % 2}" / f"{number}.mp4"
        link.symlink_to(target)
        spans.append(video(link))
    table = SpanTable.of(spans)
    config = ClipConfig(9, holdout="folder")
    _, held_out = split_table(table, config)
    assert {span.info.source.parent.name for span in held_out} == {"b"}
    _, earlier = split_table(table, replace(config, file_identity="path"))
    assert names(earlier) == ["1.mp4", "3.mp4", "5.mp4", "7.mp4", "9.mp4", "11.mp4"]


@pytest.mark.parametrize("holdout", ["column:subject", "folder"])
def test_one_group_cannot_be_held_out(holdout):
    spans = [replace(span, group="one") for span in videos(*[30] * 12)]
    message = (
        f"`clips.holdout` must be a column or folders of two groups or more, but got {holdout}"
    )
    with pytest.raises(DataError, match=message):
        split_videos(spans, 0.1, 9, holdout)


@pytest.mark.parametrize("spans", [videos(*[30] * 12), images(4)])
def test_a_column_that_no_list_has_is_refused(spans):
    match = r"`clips.holdout` must be a column that a list .* has.* but got column:subjct. Check its name"
    with pytest.raises(DataError, match=match):
        split_videos(spans, 0.1, 9, "column:subjct")


@pytest.mark.parametrize("holdout", ["auto", "file", "folder"])
def test_files_of_one_content_are_on_one_side(holdout):
    spans = [
        video(f"{number}/{name}.mp4", digest=str(number % 12))
        for number, name in enumerate("abcdefghijklmnopqrst")
    ]
    train, held_out = split_videos(spans, 0.1, 9, holdout)
    assert not {span.info.digest for span in train} & {span.info.digest for span in held_out}
    copies = [video("a.mp4", 100, "0"), video("b.mp4", 100, "0")]
    assert split_ranges([replace(copies[0], last_frame=59), copies[1]], 0.1, 9) == (
        [(0, 59), (0, 80)],
        [(90, 99)],
    )
    assert names(
        split_videos([image("a.png", "0"), image("b.png", "0"), image("c.png", "1")], 0.1, 9)[1]
    ) == ["c.png"]


def test_the_held_out_part_is_measured_by_frames():
    spans = videos(*[700] * 5, 100, *[700] * 6)
    _, held_out = split_videos(spans, 0.1, 17)
    assert sum(span.num_frames for span in held_out) == 700
    spans = videos(30, 30, 30, 900, *[30] * 10)
    assert 0.05 < sum(span.num_frames for span in split_videos(spans, 0.1, 17)[1]) / 1290 < 0.15
    spans = [replace(span, group=str(number)) for number, span in enumerate(videos(90, 900))]
    assert names(split_videos(spans, 0.1, 17, "column:subject")[1]) == ["0.mp4"]


def test_the_end_of_each_of_few_videos_is_held_out():
    spans = videos(100, 40, 10, 27, 26)
    expected = ([(0, 70), (0, 21), (0, 9), (0, 8), (0, 25)], [(80, 99), (31, 39), (18, 26)])
    assert split_ranges(spans, 0.2, 9) == expected
    earlier = (
        [(0, 79), (0, 30), (0, 9), (0, 17), (0, 16)],
        [(80, 99), (31, 39), (18, 26), (17, 25)],
    )
    assert split_ranges(spans, 0.2, 9, "earlier") == earlier
    assert len(split_videos(videos(*[30] * 9), 0.01, 9)[1]) == 9


def test_the_end_of_each_is_held_out_if_all_videos_are_in_one_group():
    spans = [replace(span, group="one") for span in videos(100, 60, 60)]
    expected = ([(0, 80), (0, 41), (0, 41)], [(90, 99), (51, 59), (51, 59)])
    assert split_ranges(spans, 0.1, 9) == expected


def test_files_of_an_earlier_run_are_in_the_order_of_their_spans_that_are_long_enough():
    files = [span.info for span in videos(*[40] * 10)]
    spans = [
        Span(files[0], 0, 7),
        *(Span(info, 10, 39) for info in files[1:]),
        Span(files[0], 10, 39),
    ]
    train, held_out = split_videos(spans, 0.2, 9, "earlier")
    assert names(held_out) == ["3.mp4", "8.mp4"]
    assert names(train) == [f"{number}.mp4" for number in (1, 2, 4, 5, 6, 7, 9, 0, 0)]
    assert ranges(train)[-2:] == [(10, 39), (0, 7)]


def test_few_videos_without_room_for_a_gap_are_held_out_whole():
    assert split_ranges(videos(20, 25, 20), 0.2, 9) == ([(0, 24), (0, 19)], [(0, 19)])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            videos(5, 12),
            r"clip of 17 frames, .* but got at most 12 frames, in 1\.mp4\. .*smaller stride\.",
        ),
        (
            videos(5, 50),
            "clip of 17 frames, 51 together, but got at most 50 .*stride, or 10 videos or more",
        ),
        ([], "`data` must be a video or two images, but got nothing"),
        (images(1), "`data` must be a video or two images, but got one image"),
    ],
)
def test_nothing_can_be_held_out(spans, message):
    with pytest.raises(DataError, match=message):
        split_videos(spans, 0.1, 17)


@pytest.mark.parametrize(
    ("holdout", "fps", "message"),
    [
        ("auto", None, r"a held-out clip of 17 frames, 51 together, but got at most 30 frames"),
        ("earlier", None, r"a held-out clip of 17 frames, 34 together, but got at most 30 frames"),
        ("auto", 25.0, r"a held-out clip, and for another one between them, but got at most 30"),
        ("earlier", 25.0, r"a training and a held-out clip, but got at most 30"),
    ],
)
def test_one_video_must_be_long_enough_for_all_its_parts(holdout, fps, message):
    (span,) = videos(30)
    span = replace(span, info=replace(span.info, time_base=Fraction(1, 25)))
    with pytest.raises(DataError, match=message):
        split_by_config([span], ClipConfig(17, fps=fps, holdout=holdout))


@pytest.mark.parametrize(("holdout", "gap"), [("auto", 1), ("earlier", 0)])
def test_spans_of_one_video_are_split_at_one_frame(holdout, gap):
    (whole,) = videos(1000)

    def parts(*limits):
        return [Span(whole.info, first, last) for first, last in limits]

    spans = parts((0, 49), (30, 129), (200, 249))
    last_part = [] if gap else [(200, 213)]  # too short for a clip after the gap
    assert split_ranges(spans, 0.2, 9, holdout) == ([(0, 49), (30, 129), *last_part], [(214, 249)])
    same = parts((0, 99)) * 10
    assert split_ranges(same, 0.1, 9, holdout) == ([(0, 89 - 9 * gap)] * 10, [(90, 99)] * 10)
    too_short = parts(
        (0, 49), (40, 49), (20, 44)
    )  # parts that are too short for a clip are dropped
    expected = ([(0, 39 - 9 * gap), (20, 39 - 9 * gap)], [(40, 49), (40, 49)])
    assert split_ranges(too_short, 0.2, 9, holdout) == expected
    # Spans that are too short for a validation clip are trained on up to the held-out end.
    scenes = parts(*((12 * i, 12 * i + 11) for i in range(15)), (160, 219), (195, 205))
    limit = 202 - 17 * gap
    short = ranges(scenes[:15])
    if gap == 0:
        short.append((195, 202))
    assert split_ranges(scenes, 0.1, 17, holdout) == ([(160, limit), *short], [(203, 219)])


def test_all_spans_of_a_video_are_held_out_together():
    spans = []
    for span in videos(*[100] * 10):
        spans += [replace(span, last_frame=59), replace(span, first_frame=40)]
    train, held_out = split_videos(spans, 0.1, 9)
    assert (len(train), names(held_out)) == (18, ["5.mp4"] * 2)
    short = [Span(span.info, 0, 3) for span in spans[10:14]]  # two of the held-out video
    assert len(split_videos(spans + short, 0.1, 9)[0]) == 18 + 2


@pytest.mark.parametrize("other", ["sub/../v.mp4", "link.mp4"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_several_paths_of_one_file_are_one_video(tmp_path, other, in_tar):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    sources = [tmp_path / "v.mp4", tmp_path / other]
    if in_tar:
        sources = [TarMember(path, "a.mp4", 512, 99) for path in sources]
    (whole,) = videos(100)
    one, two = (replace(whole.info, source=source) for source in sources)
    spans = [Span(one, 0, 59), Span(two, 40, 99), Span(one, 85, 95)]
    assert split_ranges(spans, 0.1, 9) == ([(0, 59), (40, 80)], [(90, 99)])
    assert split_ranges([Span(one, 40, 99), Span(two, 90, 97)], 0.2, 9) == ([(40, 78)], [(88, 99)])


def test_images_and_videos_are_split_separately():
    train, held_out = split_videos(images(20) + videos(100), 0.1, 9)
    assert [name for name in names(train) if name.endswith("mp4")] == ["0.mp4"]
    assert names(held_out) == ["0.mp4", "5.png", "15.png"]
    for spans, num_train, num_held_out in (
        (images(2), 1, 1),
        (images(2) + videos(100), 2, 2),
        (images(1) + videos(100), 2, 1),
        (images(1) * 2 + videos(100), 3, 1),  # a list may name a file twice
    ):
        assert [len(part) for part in split_videos(spans, 0.1, 9)] == [num_train, num_held_out]


def parts_of(spans, num_held_out):
    """Return the spans to train on, and the first ones, which are held out."""
    table = SpanTable.of(spans)
    rows = np.arange(len(spans))
    return table.take(rows[num_held_out:]), table.take(rows[:num_held_out])


def parts_of_one_video():
    parts = split_table(SpanTable.of(videos(100)), ClipConfig(9))
    assert parts is not None
    return parts


def test_the_held_out_files_are_named():
    spans = videos(*[30] * 60)
    two = describe_held_out(*parts_of(spans, 2))
    assert two == "2 of 60 videos, 60 of 1800 frames: 0.mp4, 1.mp4"
    seven = describe_held_out(*parts_of(spans, 7))
    assert seven.endswith("0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4 and 2 more")
    end = describe_held_out(*parts_of_one_video())
    assert end == "the end of 1 of 1 video, 10 of 91 frames: 0.mp4"
    assert describe_held_out(*parts_of(images(3), 1)) == "1 of 3 images, 1 of 3 frames: 0.png"
    mixed = describe_held_out(*parts_of(videos(30, 30, 30) + images(2), 1))
    assert mixed == "1 of 3 videos, 30 of 90 frames: 0.mp4"


def test_one_file_and_a_large_part_are_warned_about(caplog):
    spans = videos(*[30] * 10)
    warn_of_held_out(*parts_of(spans, 2), 0.1)
    warn_of_held_out(*parts_of_one_video(), 0.1)
    warn_of_held_out(*parts_of(spans, 5), 0.5)
    assert not caplog.text
    warn_of_held_out(*parts_of(spans, 1), 0.1)
    assert "one of 10 files is all that is held out: " in caplog.text
    assert "0.mp4; `val_data` names other files" in caplog.text
    caplog.clear()
    warn_of_held_out(*parts_of(spans, 4), 0.1)
    assert (
        "40 % of the frames are held out, 4 of 10 videos, 120 of 300 frames: 0.mp4" in caplog.text
    )
