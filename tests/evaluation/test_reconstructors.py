"""Which clips are measured, and where their reconstructions come from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from telecine.data import ahead_index, find_videos, index_video, index_videos, load_spans
from telecine.data.clip import video_from_bytes
from telecine.evaluation.load_model import load_infos, load_with_clips
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.reconstructors import contains_videos, open_reconstructor
from telecine.runs import Run
from telecine.settings import ClipConfig, EvaluateConfig, LatentsConfig
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.video.write import write_video

from .videos import waves

CPU = torch.device("cpu")
MAIN = {"num_frames": 5, "height": 32, "width": 48}
TRAINING_ONLY = {
    "buckets": [{**MAIN, "weight": 3.0}, {"num_frames": 1, "height": 64, "width": 64}],
    "image_ratio": 1.0,
    "scale_jitter": 2.0,
    "cache": True,
}


@pytest.fixture(scope="module")
def infos(videos):
    return index_videos(find_videos(videos))[0]


@pytest.fixture
def copied_videos(videos, tmp_path):
    return shutil.copytree(
        videos, tmp_path / "copy", ignore=shutil.ignore_patterns(".*")
    )  # without the index


class TestIndex:
    @pytest.fixture
    def indexed(self, monkeypatch):
        """Record the names of the videos that are indexed."""
        names = []

        def index(path, *limits):
            names.append(path.name)
            return index_video(path, *limits)

        monkeypatch.setattr(ahead_index, "index_video", index)
        return names

    @pytest.mark.parametrize("command", ["evaluate", "videos", "protocol", "latents"])
    def test_every_command_reads_the_index_of_the_last_one(
        self, command, model_folder, copied_videos, tmp_path, indexed
    ):
        small = {"data": str(copied_videos), "device": "cpu"}
        size = {"num_frames": 5, "height": 12, "width": 12, "max_clips": 1}
        run = {
            "evaluate": lambda: open_reconstructor(
                model_folder, EvaluateConfig(**small, **size), CPU
            )[1],
            "videos": lambda: open_reconstructor(copied_videos, EvaluateConfig(**small), CPU)[1],
            "protocol": lambda: open_reconstructor(
                copied_videos, EvaluateConfig(**small, protocol="davis"), CPU
            )[1],
            "latents": lambda: (
                measure_latent_spaces([model_folder], LatentsConfig(**small, **size)).models
            ),
        }[command]
        first = run()
        assert sorted(indexed) == ["one.mp4", "three.mp4", "two.mp4"]
        indexed.clear()
        assert run() == first
        assert indexed == []

    def test_what_training_has_indexed_is_kept_and_used(self, copied_videos, indexed):
        Image.new("RGB", (64, 48)).save(copied_videos / "still.png")
        load_spans(copied_videos)
        indexed.clear()
        write_video(copied_videos / "new.mp4", waves(seed=3), fps=25)
        assert len(load_infos(str(copied_videos))) == 4
        assert indexed == ["new.mp4"]
        load_spans(copied_videos)
        assert indexed == ["new.mp4"]


class TestSelection:
    def starts(self, spans):
        return [(span.info.source.stem, span.first_frame) for span in spans]

    def test_all_clips_without_overlap(self, infos):
        config = ClipConfig(num_frames=5, stride=2, height=32, width=32)
        spans = ConfiguredClips(config, 100).select(infos)
        assert self.starts(spans) == [
            (name, start) for name in ("three", "one", "two") for start in (0, 9)
        ]

    def test_fewer_clips_are_spread_evenly(self, infos):
        config = ClipConfig(num_frames=5, height=32, width=32)
        assert self.starts(ConfiguredClips(config, 3).select(infos)) == [
            ("three", 10),
            ("one", 10),
            ("two", 10),
        ]
        assert self.starts(ConfiguredClips(config, 1).select(infos)) == [("one", 10)]

    def test_a_span_is_read_at_its_position_and_size(self, infos):
        config = ClipConfig(num_frames=5, stride=2, height=32, width=32)
        protocol = ConfiguredClips(config, 100)
        clip = protocol.read(protocol.select(infos)[3])
        assert (clip["source"], clip["start"]) == (str(infos[1].source), 9)
        assert clip["video"].shape == (3, 5, 32, 32)

    @pytest.mark.parametrize(
        ("num_frames", "max_clips", "message"),
        [(27, 1, "a clip of 27 frames.*at most 26"), (5, 0, "`max_clips` must")],
    )
    def test_no_clip_raises(self, infos, num_frames, max_clips, message):
        with pytest.raises(ValueError, match=message):
            ConfiguredClips(ClipConfig(num_frames=num_frames), max_clips).select(infos)


class TestModelReconstructor:
    @pytest.fixture
    def run(self, tiny_model, tmp_path):
        """Return a function that writes a run with a checkpoint and these clip settings."""

        def write(**clips):
            checkpoint = Run(tmp_path).checkpoints.path(1)
            tiny_model.save_pretrained(checkpoint / "ema")
            (checkpoint / "state.json").write_text("{}")
            (checkpoint / "config.yaml").write_text(yaml.safe_dump({"clips": {**MAIN, **clips}}))
            return tmp_path

        return write

    def test_clips_have_the_size_of_the_run_without_training_only_settings(self, run):
        folder = run(stride=2, **TRAINING_ONLY)
        opened = load_with_clips(folder, EvaluateConfig(), CPU)
        clips = opened.clips
        assert (clips.num_frames, clips.height, clips.width, clips.stride) == (5, 32, 48, 2)
        assert (clips.buckets, clips.image_ratio, clips.scale_jitter, clips.cache) == (
            (),
            0.0,
            1.0,
            False,
        )
        assert opened.title == f"{folder}, weights ema"

    @pytest.mark.parametrize(
        ("clips", "message"),
        [
            ("3", "`clips in the settings of .*step-.*` must be a group of settings, but got 3"),
            ("{height: tall}", "`.*step-.*: clips.height` must be"),
            ("{heigth: 3}", "clips.heigth"),
        ],
    )
    def test_damaged_settings_of_a_run_are_named(self, run, clips, message):
        folder = run()
        (settings,) = folder.glob("**/config.yaml")
        settings.write_text(f"clips: {clips}")
        with pytest.raises(ValueError, match=message):
            load_with_clips(folder, EvaluateConfig(), CPU)

    def test_the_size_may_differ_from_all_buckets(self, run):
        config = EvaluateConfig(num_frames=1, height=16, width=32)
        clips = load_with_clips(run(**TRAINING_ONLY), config, CPU).clips
        assert (clips.num_frames, clips.height, clips.width) == (1, 16, 32)


class TestFileReconstructor:
    def open(self, reconstructions, data, **settings):
        opened, infos = open_reconstructor(
            reconstructions, EvaluateConfig(data=str(data), **settings), CPU
        )
        return infos, opened

    def test_clips_have_the_size_of_the_videos(self, videos, reconstructions):
        infos, opened = self.open(reconstructions["little"], videos, num_frames=4)
        clips = opened.clip_protocol.config
        assert (clips.num_frames, clips.height, clips.width) == (4, 48, 64)
        span = opened.clip_protocol.select(infos)[0]
        target = opened.clip_protocol.read(span)["video"][None]
        reconstruction = opened.reconstruct(span, target)
        assert reconstruction.shape == target.shape
        assert 0 < (reconstruction - target).abs().mean() < 0.1

    def test_several_sizes_need_a_size(self, copied_videos):
        write_video(copied_videos / "wide.mp4", waves(width=96), fps=25)
        with pytest.raises(
            ValueError,
            match="`data` must be files of one size, but got 2 sizes, from 48 x 64 to 48",
        ):
            self.open(copied_videos, copied_videos)
        _, opened = self.open(copied_videos, copied_videos, height=32, width=32)
        assert (opened.clip_protocol.config.height, opened.clip_protocol.config.width) == (32, 32)

    @pytest.mark.parametrize("alpha", [255, 90])
    def test_alpha_is_not_measured_which_a_line_says(self, tmp_path, caplog, alpha):
        frames = torch.cat([waves(2), torch.full((2, 48, 64, 1), alpha, dtype=torch.uint8)], dim=-1)
        write_video(tmp_path / "a.mkv", frames, fps=25)
        self.open(tmp_path / "a.mkv", tmp_path / "a.mkv")
        assert (
            "a.mkv has alpha, but reconstructions as files are measured as RGB" in caplog.text
        ) == (alpha < 255)

    @pytest.mark.parametrize("fps", [10, 60])
    def test_a_protocol_takes_the_frames_of_the_input_at_any_frame_rate(self, tmp_path, fps):
        for folder, rate in (("data", 30), ("reconstructions", fps)):
            (tmp_path / folder).mkdir()
            write_video(tmp_path / folder / "a.mp4", waves(17), fps=rate, crf=4)
        infos, opened = self.open(
            tmp_path / "reconstructions", tmp_path / "data", protocol="vidtok"
        )
        opened = replace(opened, clip_protocol=replace(opened.clip_protocol, num_videos=None))
        (span,) = opened.clip_protocol.select(infos)
        target = opened.clip_protocol.read(span)["video"][None]
        assert (opened.reconstruct(span, target) - target).abs().mean() < 0.02

    @pytest.mark.parametrize("rate", [15, 30])
    def test_clips_by_time_have_the_frames_of_the_input_at_any_frame_rate(self, tmp_path, rate):
        for folder, fps in (("data", 30), ("reconstructions", rate)):
            write_video(tmp_path / folder / "a.mkv", waves(26), fps=fps)
        infos, opened = self.open(
            tmp_path / "reconstructions", tmp_path / "data", num_frames=3, fps=10
        )
        span = opened.clip_protocol.select(infos)[1]
        target = opened.clip_protocol.read(span)["video"][None]
        assert torch.equal(opened.reconstruct(span, target), target)

    @pytest.mark.parametrize("protocol", [None, "davis"])
    def test_arrays_have_the_layout_and_the_range_of_the_settings(self, tmp_path, protocol):
        array = waves(17).permute(3, 0, 1, 2).numpy() / 255
        for folder in ("data", "reconstructions"):
            (tmp_path / folder).mkdir()
            np.save(tmp_path / folder / "a.npy", array)
        options = {"layout": "C T H W", "range": (0, 1), "protocol": protocol}
        infos, opened = self.open(tmp_path / "reconstructions", tmp_path / "data", **options)
        (span,) = opened.clip_protocol.select(infos)
        clip = opened.clip_protocol.read(span)["video"]
        torch.testing.assert_close(clip, video_from_bytes(waves(17)))
        assert torch.equal(opened.reconstruct(span, clip[None]), clip[None])

    def test_a_broken_reconstruction_raises(self, videos, copied_videos):
        infos, opened = self.open(copied_videos, videos, num_frames=20)
        span = opened.clip_protocol.select(infos)[0]
        target = opened.clip_protocol.read(span)["video"][None]
        shutil.rmtree(copied_videos)
        with pytest.raises(
            ValueError,
            match=r"`checkpoint` must be videos that can be decoded wherever .*cannot be decoded",
        ):
            opened.reconstruct(span, target)

    def test_steps_of_a_decoder_are_refused(self, videos, reconstructions):
        with pytest.raises(
            ValueError, match="`decode_steps` must be left out for reconstructions as videos"
        ):
            self.open(reconstructions["little"], videos, decode_steps=2)


class TestMatching:
    def match(self, data, reconstructions):
        config = EvaluateConfig(data=str(data), height=32, width=32)
        return open_reconstructor(reconstructions, config, CPU)[0].matches

    def test_by_relative_path_without_the_suffix(self, videos, reconstructions):
        matches = self.match(videos, reconstructions["much"])
        names = {
            Path(path).relative_to(videos).as_posix(): info.source.name
            for path, info in matches.items()
        }
        assert names == {"one.mp4": "one.m4v", "two.mp4": "two.mp4", "below/three.mp4": "three.mp4"}

    def test_videos_on_a_server_match_by_the_same_names(self, videos, reconstructions, s3):
        address = s3.put(videos, "videos")
        matches = self.match(address, reconstructions["much"])
        names = {
            path.removeprefix(f"{address}/"): info.source.name for path, info in matches.items()
        }
        assert names == {"one.mp4": "one.m4v", "two.mp4": "two.mp4", "below/three.mp4": "three.mp4"}
        matches = self.match(f"{address}/one.mp4", reconstructions["much"] / "one.m4v")
        assert list(matches) == [f"{address}/one.mp4"]
        config = EvaluateConfig(data=address, height=32, width=32)
        for _, infos in (
            open_reconstructor(reconstructions["much"], config, CPU),
            open_reconstructor(
                reconstructions["much"], EvaluateConfig(data=address, protocol="davis"), CPU
            ),
        ):
            assert [str(info.source) for info in infos] == list(
                self.match(address, reconstructions["much"])
            )

    def test_single_files_match_with_any_names(self, videos, copied_videos):
        renamed = (copied_videos / "one.mp4").rename(copied_videos / "other.mp4")
        matches = self.match(videos / "one.mp4", renamed)
        assert [info.source for info in matches.values()] == [renamed]

    def test_missing_and_extra_names_are_listed(self, videos, copied_videos):
        (copied_videos / "two.mp4").rename(copied_videos / "zwei.mp4")
        with pytest.raises(ValueError, match=r"copy lacks two; .* lacks zwei\. Rename or remove"):
            self.match(videos, copied_videos)

    def test_long_lists_of_names_are_cut(self, tmp_path, videos):
        many = tmp_path / "many"
        for number in range(2):
            shutil.copytree(videos, many / str(number))
        with pytest.raises(ValueError, match="lacks 0/below/three, 0/one, 0/two \\.\\.\\."):
            self.match(many, videos)

    def test_a_name_with_two_suffixes_raises(self, videos, copied_videos):
        shutil.copy(copied_videos / "one.mp4", copied_videos / "one.mkv")
        with pytest.raises(ValueError, match="Rename one: suffixes do not count"):
            self.match(copied_videos, videos)

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            (waves(20), "26 frames of 48 x 64, .* got 20 frames of 48 x 64"),
            (waves(26, 32), "got 26 frames of 32 x 64"),
        ],
    )
    def test_another_length_or_size_raises(self, videos, copied_videos, frames, message):
        write_video(copied_videos / "one.mp4", frames, fps=25)
        with pytest.raises(ValueError, match=message):
            self.match(videos, copied_videos)


def test_folders_of_videos_are_told_from_models(videos, model_folder, copied_videos, tmp_path):
    assert contains_videos(videos)
    assert contains_videos(videos / "one.mp4")
    assert contains_videos(videos / "below")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked").symlink_to(videos)
    assert contains_videos(tmp_path / "links")
    assert not contains_videos(model_folder)
    assert not contains_videos(tmp_path / "nowhere")
    (copied_videos / "config.yaml").write_text(json.dumps({}))  # a run with its side_by_side.mp4
    assert not contains_videos(copied_videos)
