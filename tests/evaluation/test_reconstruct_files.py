"""What `reconstruct` does with files: the sound of videos, folders, and signals."""

import os
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from telecine.__main__ import main
from telecine.data import index_video
from telecine.evaluation.reconstruct import reconstruct
from telecine.models import as_video_autoencoder
from telecine.settings import ReconstructConfig

from .videos import waves

CONFIG = ReconstructConfig(num_frames=9, device="cpu")
RATE = 44100
SECONDS = 0.7  # longer than the 13 frames


def write_with_sound(path, codec, sample_format, first_pts=0, num_at_once=1):
    """Write a video of 13 frames, the first ones at one time, with a tone of 440 Hz that starts with the video."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height = 48
        video.width = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codec, rate=RATE)
        sound.layout = "stereo"
        sound.format = sample_format
        start = int(Fraction(first_pts, 25) * RATE)
        for number, frame in enumerate(waves(13)):
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            picture.pts = first_pts + max(0, number + 1 - num_at_once)
            picture.time_base = Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        times = np.arange(int(SECONDS * RATE)) / RATE
        tone = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
        samples = av.AudioFrame.from_ndarray(
            np.repeat(tone, 2).reshape(1, -1), format="s16", layout="stereo"
        )
        samples.rate = RATE
        samples.pts = 0
        samples.time_base = Fraction(1, RATE)
        fifo = av.AudioFifo()
        resampler = av.AudioResampler(format=sample_format, layout="stereo", rate=RATE)
        for part in resampler.resample(samples):
            fifo.write(part)
        part = fifo.read(1024, partial=True)
        while part is not None:
            part.pts += start
            container.mux(sound.encode(part))
            part = fifo.read(1024, partial=True)
        container.mux(sound.encode())
    return path


def packets_of_sound(path):
    """Return the packets of the sound, and when the first one is heard after the first frame, in seconds."""
    with av.open(str(path)) as container:
        first_frame = next(container.decode(video=0)).time
        container.seek(0)
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        start = packets[0].pts * packets[0].time_base - first_frame
        return [bytes(packet) for packet in packets], float(start)


def num_sounds(path):
    with av.open(str(path)) as container:
        return len(container.streams.audio)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
@pytest.mark.parametrize("first_pts", [0, 50])
def test_the_sound_is_copied_without_decoding_it(model_folder, tmp_path, name, first_pts):
    video = write_with_sound(tmp_path / "in.mp4", "aac", "fltp", first_pts)
    output = tmp_path / name
    reconstruct(model_folder, video, output, CONFIG)
    packets, start = packets_of_sound(video)
    copied, copied_start = packets_of_sound(output)
    # An MKV has no negative times: it lacks the packets that the decoder only starts with.
    num_missing = len(packets) - len(copied)
    assert copied == packets[num_missing:]
    assert num_missing <= (2 if name == "out.mkv" else 0)
    assert copied_start == pytest.approx(start + num_missing * 1024 / RATE, abs=2e-3)
    info = index_video(output)
    assert (info.num_frames, info.fps) == (13, 25)
    with av.open(str(output)) as container:
        heard = torch.cat(
            [torch.from_numpy(frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
        )
    frequencies = torch.fft.rfft(heard[: RATE // 2].double()).abs()
    assert int(frequencies.argmax()) * 2 == 440


def test_the_sound_begins_with_a_video_whose_times_are_not_known(model_folder, tmp_path):
    video = write_with_sound(tmp_path / "in.mkv", "aac", "fltp", first_pts=50, num_at_once=2)
    assert not index_video(video).seekable
    output = tmp_path / "out.mp4"
    reconstruct(model_folder, video, output, CONFIG)
    assert packets_of_sound(output)[1] == pytest.approx(packets_of_sound(video)[1], abs=2e-3)


def test_side_by_side_it_is_copied_too_and_a_video_without_it_has_none(
    model_folder, videos, tmp_path
):
    video = write_with_sound(tmp_path / "in.mp4", "aac", "fltp")
    compared = ReconstructConfig(num_frames=9, device="cpu", compare=True)
    reconstruct(model_folder, video, tmp_path / "compared.mp4", compared)
    assert num_sounds(tmp_path / "compared.mp4") == 1
    reconstruct(model_folder, videos / "one.mp4", tmp_path / "silent.mp4", CONFIG)
    assert num_sounds(tmp_path / "silent.mp4") == 0


def test_a_sound_that_an_mp4_cannot_have_is_left_out_and_named(model_folder, tmp_path, caplog):
    video = write_with_sound(tmp_path / "in.mkv", "pcm_s16le", "s16")
    reconstruct(model_folder, video, tmp_path / "out.mp4", CONFIG)
    assert num_sounds(tmp_path / "out.mp4") == 0
    assert f"the sound of {video} (pcm_s16le) is not in the MP4: write an MKV" in caplog.text
    caplog.clear()
    reconstruct(model_folder, video, tmp_path / "out.mkv", CONFIG)
    assert packets_of_sound(tmp_path / "out.mkv")[0] == packets_of_sound(video)[0]
    assert caplog.text == ""


def test_a_file_cannot_have_the_results_of_a_folder(model_folder, videos, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "out.mp4", tmp_path / "file"):
        with pytest.raises(
            ValueError, match=r"`output` must be a folder for the reconstructions of .*, but got"
        ):
            reconstruct(model_folder, videos, output, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


class StopsWhileTheFileIsWritten(torch.nn.Module):
    """Returns its input, and sends SIGTERM to its process once when the folder has a partial file."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.in_channels = 3
        self.has_stopped = False
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, video):
        if not self.has_stopped and any(
            path.suffix == ".partial" for path in self.folder.iterdir()
        ):
            self.has_stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
        return video * self.weight


def test_a_signal_leaves_no_partial_file(videos, tmp_path, monkeypatch, capsys):
    model = as_video_autoencoder(StopsWhileTheFileIsWritten(tmp_path))
    monkeypatch.setattr("telecine.evaluation.reconstruct.load_model", lambda *_: model)
    output = tmp_path / "out.mp4"
    words = ["reconstruct", "tiny", str(videos / "one.mp4"), "-o", str(output)]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # where it was not handled
    try:
        assert main([*words, "--num_frames", "2", "--device", "cpu"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []
    assert f"interrupted before {output} was complete" in capsys.readouterr().out
