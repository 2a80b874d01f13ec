"""`telecine encode` and `decode`: the same bytes after interruptions and of processes; the frames of `reconstruct`."""

import contextlib
import json
import os
import re
import shutil
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn

from telecine.data import DataError, index_video, iterate_frames, load_spans, read_clip
from telecine.data.clip import video_from_bytes
from telecine.data.hdr import PQ
from telecine.evaluation.reconstruct import reconstruct
from telecine.models import CausalVAE
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.latent_shards import LatentShards, ShardError
from telecine.runs import Run
from telecine.settings import ClipConfig, PixelFormat, ReconstructConfig
from telecine.tools.decode.decode import decode_latents, name_files
from telecine.tools.decode.settings import DecodeConfig
from telecine.tools.encode.clips import list_clips, read_chunks
from telecine.tools.encode.encode import encode_data
from telecine.tools.encode.settings import EncodeConfig
from telecine.video.write import write_video

from ...evaluation.conftest import TINY
from ...evaluation.videos import waves
from ...models.tiny_models import tiny_model

# A stream computes chunks, and convolutions choose their order of sums by the number of frames.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def settings(data, **changes):
    return EncodeConfig(data=str(data), device="cpu", clips_per_shard=2, **changes)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def latents(model, data, tmp_path_factory):
    """The latents of the list, in an uninterrupted run."""
    folder = tmp_path_factory.mktemp("latents")
    encoded = encode_data(model, settings(data / "list.jsonl"), folder)
    assert (encoded.num_clips, encoded.num_new, encoded.is_complete) == (6, 6, True)
    return folder


def test_a_clip_has_the_posterior_of_the_model_and_what_is_known_about_it(model, data, latents):
    shards = LatentShards(latents)
    sample = shards[1]
    video = video_from_bytes(torch.stack(list(iterate_frames(data / "videos" / "b.mkv"))))
    with torch.no_grad():
        posterior = model.encode(F.pad(video[None], (0, 2, 0, 2, 0, 0), mode="replicate"))
    torch.testing.assert_close(sample["mean"], posterior.mean[0], **ROUNDING)
    torch.testing.assert_close(sample["logvar"], posterior.logvar[0], **ROUNDING)
    assert sample["metadata"] == {
        "source": "b.mkv",
        "first_frame": 0,
        "num_frames": 9,
        "height": 30,
        "width": 22,
        "fps": 25.0,
        "is_image": False,
        "columns": {"caption": "wave b", "rating": 1},
    }
    part = shards[5]
    assert part["metadata"]["columns"] == {"caption": "part"}
    assert (part["metadata"]["first_frame"], part["metadata"]["num_frames"]) == (10, 7)
    frames = read_clip(index_video(data / "videos" / "a.mkv"), 10, 7)
    last = frames[-1:].expand(2, -1, -1, -1)
    with torch.no_grad():
        mean = model.encode(video_from_bytes(torch.cat([frames, last]))[None]).mean
    torch.testing.assert_close(part["mean"], mean[0], **ROUNDING)


@pytest.fixture(scope="session")
def tone_mapped_run(model, tmp_path_factory):
    """A run that was trained on tone-mapped videos of 16 bits."""
    run = Run(tmp_path_factory.mktemp("tone_mapped"))
    checkpoint = run.checkpoints.path(1)
    model.save_pretrained(checkpoint / "ema")
    (checkpoint / "state.json").write_text("{}")
    clips = {"hdr": "tone_map", "bit_depth": 16, "colour_matrix": "auto"}
    (checkpoint / "config.yaml").write_text(yaml.safe_dump({"clips": clips}))
    return run.folder


@pytest.fixture(scope="session")
def wide_video(tmp_path_factory):
    """A video with a high dynamic range."""
    path = tmp_path_factory.mktemp("wide") / "wide.mkv"
    write_video(path, waves(5, 24, 32, 0), 25, hdr=PQ)
    return path


def test_a_run_encodes_the_pixels_that_it_was_trained_on(
    model, tone_mapped_run, wide_video, tmp_path
):
    encode_data(tone_mapped_run, settings(wide_video), tmp_path)
    frames = iterate_frames(wide_video, pixels=PixelFormat("rgb", 16, hdr="tone_map"))
    video = video_from_bytes(torch.stack(list(frames)))
    with torch.no_grad():
        mean = model.encode(video[None]).mean
    torch.testing.assert_close(LatentShards(tmp_path)[0]["mean"], mean[0], **ROUNDING)


def test_shards_of_other_pixels_are_not_continued(model, tone_mapped_run, wide_video, tmp_path):
    encode_data(tone_mapped_run, settings(wide_video), tmp_path)
    (settings_file,) = tone_mapped_run.glob("**/config.yaml")
    before = settings_file.read_text()
    try:
        settings_file.write_text("clips: {colour_matrix: auto}")
        with pytest.raises(ValueError, match=r"another value of `pixels` \("):
            encode_data(tone_mapped_run, settings(wide_video), tmp_path)
    finally:
        settings_file.write_text(before)


def test_a_run_reconstructs_the_pixels_that_it_was_trained_on(
    tone_mapped_run, wide_video, tmp_path
):
    frames = iterate_frames(wide_video, pixels=PixelFormat(hdr="tone_map"))
    write_video(tmp_path / "mapped.mkv", frames, 25)
    written = []
    for number, video in enumerate((wide_video, tmp_path / "mapped.mkv")):
        path = tmp_path / f"{number}.mkv"
        reconstruct(tone_mapped_run, video, path, ReconstructConfig(device="cpu"))
        assert index_video(path).hdr == ""
        written.append(torch.stack(list(iterate_frames(path))))
    assert torch.equal(*written)


@pytest.mark.parametrize("place", range(1, 11))
def test_interrupted_and_resumed_has_the_same_files(
    model, data, latents, tmp_path, monkeypatch, place
):
    """Of the flushes and renames of a run, the first `place - 1` happen."""
    calls = []

    def interrupted(call):
        def stop(*arguments, **options):
            calls.append(call)
            if len(calls) == place:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted(os.replace))
        patch.setattr(os, "fsync", interrupted(os.fsync))
        with pytest.raises(KeyboardInterrupt):
            encode_data(model, settings(data / "list.jsonl"), tmp_path)
    left = tmp_path / f".latents-00000.tar.{'0' * 32}.partial"  # as a kill leaves it
    left.write_bytes(b"half")
    assert content(tmp_path) != content(latents)
    assert encode_data(model, settings(data / "list.jsonl"), tmp_path).is_complete
    assert content(tmp_path) == content(latents)


def test_the_first_of_several_processes_logs_what_all_read(
    model, data, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(data / "videos" / "a.mkv", folder)
    (folder / "notes.txt").write_text("")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    encode_data(model, settings(folder), tmp_path / "latents")
    assert not caplog.text
    monkeypatch.setenv("RANK", "0")
    encode_data(model, settings(folder), tmp_path / "latents")
    assert "ignored in" in caplog.text


def test_another_process_with_other_data_is_refused(model, data, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(data / "videos" / "a.mkv", folder)
    shutil.copy(data / "videos" / "c.mkv", folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    encode_data(model, settings(folder), tmp_path / "latents")
    (folder / "c.mkv").write_bytes(b"damaged")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="with another value of data"):
        encode_data(model, settings(folder), tmp_path / "latents")


def test_two_processes_write_what_one_writes(model, data, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        results.append(encode_data(model, settings(data / "list.jsonl"), tmp_path))
    assert [encoded.num_new for encoded in results] == [2, 4]
    assert [encoded.is_complete for encoded in results] == [False, True]
    assert content(tmp_path) == content(latents)


def test_a_lost_shard_is_encoded_again(model, data, latents, tmp_path):
    for name, file in content(latents).items():
        (tmp_path / name).write_bytes(file)
    (tmp_path / "latents-00001.tar").unlink()
    assert encode_data(model, settings(data / "list.jsonl"), tmp_path).num_new == 2
    assert content(tmp_path) == content(latents)


def test_the_manifest_has_digests_and_statistics(latents):
    manifest = json.loads((latents / "manifest.json").read_text())
    shards = LatentShards(latents)
    means = torch.cat([shards[number]["mean"].flatten(1) for number in range(6)], dim=1).double()
    statistics = manifest["statistics"]
    torch.testing.assert_close(torch.tensor(statistics["mean"]).double(), means.mean(1))
    std = means.std(1, unbiased=False)
    torch.testing.assert_close(torch.tensor(statistics["std"]).double(), std)
    assert (manifest["num_clips"], manifest["num_frames"]) == (6, 26 + 9 + 5 + 13 + 1 + 7)
    assert set(manifest["shards"]) == {f"latents-0000{number}.tar" for number in range(3)}
    assert "# Latents of 6 clips" in (latents / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_mode_in_half_precision_normalised(model, data, tmp_path, dtype):
    from telecine.models.latent import LatentStatistics

    model.set_latent_statistics(LatentStatistics([1.0, 2, 3, 4], [2.0, 3, 4, 5]))
    try:
        config = settings(data / "videos" / "c.mkv", latent="mode", dtype=dtype, normalise=True)
        encode_data(model, config, tmp_path / "latents")
        sample = LatentShards(tmp_path / "latents")[0]
        video = video_from_bytes(torch.stack(list(iterate_frames(data / "videos" / "c.mkv"))))
        with torch.no_grad():
            mean = model.encode(video[None]).mean[0]
        expected = (mean - torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1)) / torch.tensor(
            [2.0, 3, 4, 5]
        ).view(4, 1, 1, 1)
        assert set(sample) == {"mean", "name", "metadata"}
        assert sample["mean"].dtype == getattr(torch, dtype)
        torch.testing.assert_close(sample["mean"].float(), expected, rtol=1e-2, atol=1e-2)
        model.save_pretrained(tmp_path / "model")
        decode = DecodeConfig(model=str(tmp_path / "model"), device="cpu", format="mkv")
        decode_latents(tmp_path / "latents", decode, tmp_path / "videos")
        frames = torch.stack(list(iterate_frames(tmp_path / "videos" / "c.mkv")))
        with torch.no_grad():
            whole = model.decode(mean[None])[0]
        difference = video_from_bytes(frames) - whole.clamp(-1, 1)
        assert difference.abs().mean() < 0.02
    finally:
        model.latent_statistics = None


def test_latents_of_sdxl_are_normalised_as_its_pipeline_does(data, tmp_path):
    """`latents * latents_std / scaling_factor + latents_mean` is what that decodes, by numbers of each channel."""
    numbers = {"latents_mean": [0.3] * 4, "latents_std": [2.0] * 4, "scaling_factor": 0.5}
    model = DiffusersAutoencoder(tiny_model("kl_image", **numbers)).eval()
    image = settings(data / "videos" / "image.png", latent="mode", num_frames=1)
    encode_data(model, image, tmp_path / "plain")
    encode_data(model, replace(image, normalise=True), tmp_path / "normalised")
    latent = LatentShards(tmp_path / "normalised")[0]["mean"]
    torch.testing.assert_close(
        latent * 2.0 / 0.5 + 0.3, LatentShards(tmp_path / "plain")[0]["mean"]
    )
    model.save_pretrained(tmp_path / "model")
    decode = DecodeConfig(model=str(tmp_path / "model"), device="cpu")
    for name in ("plain", "normalised"):
        decode_latents(tmp_path / name, decode, tmp_path / "images" / name)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    normalised, plain = (torch.tensor(list(Image.open(path).tobytes())) for path in paths)
    torch.testing.assert_close(normalised, plain, rtol=0, atol=1)


def test_statistics_of_positions_in_a_patch_do_not_normalise(data, tmp_path):
    model = DiffusersAutoencoder(tiny_model("flux2"))
    message = "`normalise` must be false for a model with 16 means for 4 channels, but got True"
    with pytest.raises(ValueError, match=message):
        encode_data(model, settings(data, num_frames=1, normalise=True), tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


def test_decoded_latents_equal_reconstruct(model, data, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    encode_data(tmp_path / "model", settings(data / "videos"), tmp_path / "latents")
    decode = DecodeConfig(device="cpu", format="mkv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert decode_latents(tmp_path / "latents", decode, tmp_path / "decoded") == 2
    monkeypatch.setenv("RANK", "0")
    assert decode_latents(tmp_path / "latents", decode, tmp_path / "decoded") == 3
    assert decode_latents(tmp_path / "latents", decode, tmp_path / "decoded") == 0
    compared = 0
    for path in sorted((tmp_path / "decoded").iterdir()):
        source = data / "videos" / path.name
        output = tmp_path / "reconstructed" / path.name
        reconstruct(tmp_path / "model", source, output, ReconstructConfig(device="cpu"))
        pair = [
            read_clip(index_video(file), 0, index_video(file).num_frames) for file in (path, output)
        ]
        assert torch.equal(*pair)
        compared += 1
    assert compared == 5


def test_columns_of_parquet_are_kept_as_json_has_them(model, data, tmp_path):
    columns = {
        "path": [str(data / "videos" / "c.mkv")],
        "date": [datetime(2026, 1, 2)],
        "score": [Decimal("1.50")],
        "thumbnail": [b"\0\xff"],
        "tags": [[{"name": "wave", "rating": 2.5}]],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    encode_data(model, settings(tmp_path / "list.parquet"), tmp_path / "latents")
    assert LatentShards(tmp_path / "latents")[0]["metadata"]["columns"] == {
        "date": "2026-01-02 00:00:00",
        "score": "1.50",
        "thumbnail": "AP8=",
        "tags": [{"name": "wave", "rating": 2.5}],
    }


@pytest.mark.parametrize("folder", ["videos", "videos/", "./videos", "videos//", "."])
def test_sources_have_their_place_in_the_folder_however_it_is_typed(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        Image.new("RGB", (24, 16)).save(tmp_path / "videos" / name / "still.png")
    clips = list_clips(load_spans(folder)[0], settings(folder))
    sources = [clip.metadata(folder)["source"] for clip in clips]
    place = "videos/" if folder == "." else ""
    assert sources == [f"{place}a/still.png", f"{place}b/still.png"]


def test_videos_of_grey_are_no_mp4(data, tmp_path):
    grey = CausalVAE(replace(TINY, in_channels=1))
    grey.save_pretrained(tmp_path / "grey")
    encode_data(tmp_path / "grey", settings(data / "videos" / "c.mkv"), tmp_path / "latents")
    message = "`format` must be mkv for videos of 1 channel, but got mp4. Add `--format mkv`."
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_latents(tmp_path / "latents", DecodeConfig(device="cpu"), tmp_path / "decoded")


def test_names_of_decoded_clips_sort_as_the_clips_do(model, data, tmp_path):
    config = settings(data / "videos", num_frames=5, height=16, width=24)
    encode_data(model, config, tmp_path)
    files = name_files(LatentShards(tmp_path), tmp_path, "mkv").values()
    assert sorted(files) == list(files)
    assert [path.name for path in files][:3] == [
        "a-000000.mkv",
        "a-000005.mkv",
        "a-000010.mkv",
    ]


def test_clips_of_videos(model, data, tmp_path, caplog):
    config = settings(data / "videos", num_frames=5, height=16, width=24, stride=2)
    encode_data(model, config, tmp_path)
    shards = LatentShards(tmp_path)
    places = [
        (sample["metadata"]["source"], sample["metadata"]["first_frame"]) for sample in shards
    ]
    expected = [("a.mkv", 0), ("a.mkv", 9), ("b.mkv", 0), ("d.mkv", 0), ("image.png", 0)]
    assert places == expected
    assert "1 of 5 files or segments have no clip of 9 frames, and are not" in caplog.text
    assert "c.mkv (5 frames)" in caplog.text
    assert {tuple(sample["mean"].shape) for sample in shards} == {(4, 2, 4, 6), (4, 1, 4, 6)}


def test_pixels_that_are_not_square_are_cropped_as_training_does(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, waves(3, 24, 32), 25, sample_aspect_ratio=1.5)
    spans, _ = load_spans(path)
    (clip,) = list_clips(spans, settings(path, height=24, width=32))
    (video,) = read_chunks(clip, ClipConfig())
    shown = read_clip(index_video(path), 0, 3)
    assert shown.shape[1:3] == (24, 48)
    assert torch.equal(video, video_from_bytes(shown[:, :, 8:40]))


def test_clips_of_a_frame_rate_have_the_frames_nearest_in_time(model, data, tmp_path, caplog):
    """Of videos of 25 frames a second, at 12.5 every second frame; at 10 with a distance of two or three."""
    size = {"num_frames": 5, "height": 16, "width": 24}
    folders = {}
    for name, changes in {
        "stride": {"stride": 2},
        "fps": {"fps": 12.5},
        "ten": {"fps": 10},
    }.items():
        folders[name] = tmp_path / name
        encode_data(model, settings(data / "videos", **size, **changes), folders[name])
    for by_stride, by_time in zip(
        LatentShards(folders["stride"]), LatentShards(folders["fps"]), strict=True
    ):
        assert torch.equal(by_stride["mean"], by_time["mean"])
        assert by_stride["metadata"].pop("stride", 2) == 2
        assert by_stride["metadata"] == by_time["metadata"]
    at_ten = LatentShards(folders["ten"])
    assert [at_ten[number]["metadata"]["first_frame"] for number in (0, 1)] == [0, 11]
    encode_data(model, settings(data / "videos" / "c.mkv", fps=12.5), tmp_path / "whole")
    assert LatentShards(tmp_path / "whole")[0]["metadata"]["num_frames"] == 3
    too_fast = "`fps` must be at most about the rate of the fastest video, 25, but got 30"
    with pytest.raises(DataError, match=too_fast):
        encode_data(model, settings(data / "videos" / "a.mkv", fps=30, **size), tmp_path / "fast")
    assert "a.mkv, which has 25 frames a second" in caplog.text
    with pytest.raises(ValueError, match="`fps` must be left out with a `stride` above 1"):
        settings(data, fps=5, stride=2)


class Whole(nn.Module):
    """A model that does not stream, with an encoder and a decoder."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv3d(3, 3, 1)

    def forward(self, video):
        return self.scale(video)


def test_what_is_refused(model, data, latents, tmp_path):
    changed = r"another value of data_sha256, `latent` \('moments' there, 'mode' now\)"
    with pytest.raises(ValueError, match=changed):
        encode_data(model, settings(data / "videos" / "a.mkv", latent="mode"), latents)
    with pytest.raises(ValueError, match=r"`num_frames` must be set .* that it accepts is 1\."):
        encode_data(Whole(), settings(data / "videos"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"`num_frames` must be a number .* but got 6 .*Use 9"):
        encode_data(model, settings(data / "videos", num_frames=6), tmp_path / "b")
    with pytest.raises(ValueError, match=r"`normalise` must be false for a model without stat"):
        encode_data(model, settings(data / "videos", normalise=True), tmp_path / "c")
    with pytest.raises(
        DataError,
        match="`data` must be videos with a clip of 101 frames, but got at most 26 frames",
    ):
        encode_data(model, settings(data / "videos" / "a.mkv", num_frames=101), tmp_path / "d")
    with pytest.raises(ValueError, match="`height` must be set together with `width`"):
        settings(data, height=16)
    with pytest.raises(ValueError, match="`latents` must be a folder of encoded clips"):
        decode_latents(data, DecodeConfig(device="cpu"), tmp_path / "e")


def test_a_damaged_shard_is_named(latents, tmp_path):
    for name, file in content(latents).items():
        (tmp_path / name).write_bytes(file)
    shard = bytearray((tmp_path / "latents-00001.tar").read_bytes())
    shard[-2000] ^= 1
    (tmp_path / "latents-00001.tar").write_bytes(shard)
    shards = LatentShards(tmp_path)
    assert "mean" in shards[0]
    with pytest.raises(ShardError, match=r"latents-00001\.tar` must be .* as it was written"):
        shards[2]


def test_the_lines_of_the_page_read_them(latents, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "latents-on-disk.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(latents.parent)
    with contextlib.suppress(FileExistsError):
        (latents.parent / "latents").symlink_to(latents)
    shards = LatentShards(latents)
    tested = 0
    for block in blocks:
        if "latents" not in block or "stream" in block:
            continue
        names: dict[str, object] = {}
        exec(block, names)
        assert torch.equal(names["latent"].squeeze(0), shards[5]["mean"])
        tested += 1
    assert tested == 2
