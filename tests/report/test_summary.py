"""The summary of a run as text, and which runs compare."""

from dataclasses import replace

from telecine.report.reported_run import describe_training, not_comparable
from telecine.runs.summary import RunSummary, ValidationSet

CLIPS = ValidationSet(num_clips=12, num_frames=9, height=64, width=80, sha256="a")
SUMMARY = RunSummary(
    num_parameters=1_500_000,
    num_trained=500_000,
    num_disc_parameters=250_000,
    num_videos=4,
    num_skipped=1,
    num_frames=700,
    clips_per_update=4,
    validation=CLIPS,
    seconds=75.4,
    peak_memory=3 * 2**29,
)


def test_it_is_described():
    records = [
        {"step": step, "train/clips_per_second": speed}
        for step, speed in enumerate((1.0, 6.0, 8.0), 1)
    ]
    assert describe_training(SUMMARY, records) == {
        "wall time": "1 min 15 s",
        "updates a second": "1.5",
        "clips a second": "6",
        "peak memory": "1.50 GiB",
        "parameters": "1.50 M, 0.50 M trained",
        "parameters of discriminators": "0.25 M",
        "training data": "4 videos, 1 skipped, 700 frames",
        "held-out clips": "12 of 9 x 64 x 80",
    }
    assert describe_training(None, records) == {"clips a second": "6"}
    less = describe_training(
        replace(SUMMARY, num_trained=1_500_000, num_skipped=0, peak_memory=None), []
    )
    assert (less["parameters"], less["training data"]) == ("1.50 M", "4 videos, 700 frames")
    images = describe_training(replace(SUMMARY, num_videos=1, num_images=2), [])
    assert images["training data"] == "1 video and 2 images, 1 skipped, 700 frames"
    held_out = describe_training(replace(SUMMARY, held_out="1 of 4 videos: a.mp4"), [])
    assert held_out["held out"] == "1 of 4 videos: a.mp4"
    assert less.keys().isdisjoint({"peak memory", "updates a second", "clips a second"})


def test_runs_with_other_held_out_clips_do_not_compare():
    others = [CLIPS, replace(CLIPS, num_clips=6, height=48, sha256="b"), replace(CLIPS, sha256="c")]
    summaries = [SUMMARY, *(replace(SUMMARY, validation=clips) for clips in others), None]
    assert not_comparable("abcde", summaries) == [
        "a and c: num_clips 12 and 6, height 64 and 48",
        "a and d: other pixels in the held-out clips",
        "a and e: the held-out clips of e were not recorded",
    ]
    assert not_comparable("ab", [None, SUMMARY]) == [
        "a and b: the held-out clips of a were not recorded"
    ]
    assert not_comparable("a", [None]) == []
