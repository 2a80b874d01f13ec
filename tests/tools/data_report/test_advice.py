"""What would help the training on a data set."""

from dataclasses import replace

import pytest

from telecine.data import ClipDataset
from telecine.tools.data_report.advice import give_advice
from telecine.training.clips import Spans

MUCH = 2**40
LITTLE = 0


@pytest.fixture(scope="module")
def train(config):
    spans = Spans.find(config.data, None, config.clips)
    return ClipDataset(spans.train, config.clips, seed=0).spans


def test_it_follows_from_the_values(report, config, train):
    sentences = give_advice(report, config.clips, train, MUCH)
    assert sentences == report.advice
    assert sentences[0].startswith(
        f"One core reads {report.clips_per_second:.3g} clips a second; 3 workers"
    )
    assert sentences[1].startswith("More than 60 frames between keyframes: 1 of 6 videos.")
    assert "`--clips.cache true`" in sentences[2]
    assert "Black, static or with a cut: " in sentences[3]
    assert sentences[4].startswith(f"{config.data}/other.mp4 has 34% of the frames")
    assert sentences[5].startswith("Groups of files that are copies: 2.")


def test_a_long_file_of_which_little_is_used_is_not_mentioned(report, config, train):
    part = [
        replace(span, last_frame=9) if span.info.source.name == "other.mp4" else span
        for span in train
    ]
    assert not any(
        "other.mp4" in sentence for sentence in give_advice(report, config.clips, part, MUCH)
    )


def test_files_that_are_drawn_equally_often_need_no_weighting(report, config, train):
    sentences = give_advice(report, config.clips, train, MUCH)
    by_file = give_advice(report, replace(config.clips, weighting="files"), train, MUCH)
    assert by_file == sentences[:4] + sentences[5:]


def test_kept_frames_are_not_read_again(report, config, train):
    cached = give_advice(report, replace(config.clips, cache=True), train, MUCH)
    assert cached[0].startswith("All training frames are decoded once and kept: 0.00 GiB")
    assert cached[1:] == report.advice[3:]


def test_frames_that_do_not_fit_into_memory_are_not_kept(report, config):
    quiet = replace(
        report, clips=[replace(clip, flaws=()) for clip in report.clips], files=[], copies=[]
    )
    sentences = give_advice(quiet, config.clips, [], LITTLE)
    assert len(sentences) == 2
    assert "too much for `--clips.cache`" in sentences[1]
