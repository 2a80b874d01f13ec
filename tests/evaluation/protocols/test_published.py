"""Published protocols: what they select, read and measure, and that a change of any item is noticed."""

import importlib.util
import json
import re
import shutil
import subprocess
from array import array
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from telecine.__main__ import main
from telecine.data import Span, find_videos, index_videos, read_clip
from telecine.evaluation.comparable import check_protocols
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics import METRICS
from telecine.evaluation.metrics.frechet import I3DFeatures, frechet_distance
from telecine.evaluation.protocols.papers import (
    DAVIS,
    PROTOCOLS,
    TOKENBENCH,
    UCF101,
    VIDTOK,
    WF_VAE_25,
    WF_VAE_33,
)
from telecine.evaluation.protocols.published import CLIP_CHOICES, VALUES
from telecine.evaluation.reconstructors import ModelReconstructor
from telecine.models import CausalVAE, Reconstruction
from telecine.ops.pass_options import pass_options
from telecine.settings import EvaluateConfig, ProtocolName
from telecine.video.write import write_video

from ..conftest import TINY
from ..videos import noisy, waves

PAGE = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")
NUM_FRAMES = 12
TEXTS = ("data", "sources", "not_stated", "deviations")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos of 12 frames, of 40 x 56 and of 64 x 80."""
    folder = tmp_path_factory.mktemp("published")
    write_video(folder / "a.mp4", waves(NUM_FRAMES, 40, 56, 0), fps=25, crf=4)
    write_video(folder / "b.mp4", waves(NUM_FRAMES, 64, 80, 1), fps=25, crf=4)
    return folder


@pytest.fixture
def infos(data):
    return index_videos(find_videos(data))[0]


@pytest.fixture
def run(data, tiny_model, fake_lpips, monkeypatch):
    """Return a function that evaluates the tiny model by a protocol."""

    def run(protocol, **settings):
        monkeypatch.setitem(PROTOCOLS, protocol.name, protocol)
        settings = {"features": "none", "data": str(data), "device": "cpu", **settings}
        return evaluate(tiny_model, EvaluateConfig(protocol=protocol.name, **settings))

    return run


def small(protocol):
    """Return the protocol for small and short videos, of which the first is enlarged, or left alone."""
    numbers = {
        "short_side": 44,
        "crop": 32,
        "num_frames": 5,
        "chunk": 5,
        "max_length": (8, 0.2),
        "num_videos": 2,
    }
    return replace(
        protocol,
        **{name: value for name, value in numbers.items() if getattr(protocol, name) is not None},
    )


def as_json(evaluation):
    return json.loads(json.dumps(asdict(evaluation.protocol)))


CHANGES = {
    "clips": "first",
    "num_frames": 9,
    "sample_fps": 12.5,
    "max_length": (6, 0.1),
    "short_side": 50,
    "interpolation": "lanczos",
    "enlarge": False,
    "crop": 28,
    "posterior": "sample",
    "chunk": 4,
    "values": "rounded",
    "metrics": ("ssim_valid",),
}


def test_a_change_of_any_item_is_noticed(run):
    protocol = replace(small(VIDTOK), posterior="mode")
    base = run(protocol)
    assert check_protocols(as_json(base), as_json(base)) == []
    for item, change in CHANGES.items():
        other = run(replace(protocol, **{item: change}))
        message = rf"with the same protocol, but got .*published\.{item}: "
        with pytest.raises(ValueError, match=message):
            check_protocols(as_json(base), as_json(other))
        assert other.metrics != base.metrics, item
    texts = dict.fromkeys(TEXTS, ("something else",))
    other = run(replace(protocol, **texts))
    assert other.metrics == base.metrics
    for item in TEXTS:
        changed = as_json(base)
        changed["published"][item] = as_json(other)["published"][item]
        with pytest.raises(ValueError, match=rf"but got .*published\.{item}: "):
            check_protocols(as_json(base), changed)


def test_evaluations_by_other_protocols_do_not_compare(run):
    first = as_json(run(small(WF_VAE_25)))
    second = as_json(run(small(WF_VAE_33)))
    with pytest.raises(ValueError, match=r"published\.name: wf_vae_25 and wf_vae_33"):
        check_protocols(first, second)
    del second["published"]
    with pytest.raises(ValueError, match=r"published\.name: wf_vae_25 and None"):
        check_protocols(first, second)


def test_items_that_exclude_each_other_are_refused(run):
    assert {*CHANGES, *TEXTS, "name", "num_videos", "needs_features"} == {
        item.name for item in fields(VIDTOK)
    }
    with pytest.raises(ValueError, match="`data` must be the 3 videos of protocol vidtok"):
        run(replace(small(VIDTOK), num_videos=3))
    with pytest.raises(ValueError, match="`clips` must be whole, or of a number of frames"):
        replace(VIDTOK, clips="whole")
    with pytest.raises(ValueError, match="`posterior` must be the mode in chunks, but got sample"):
        replace(VIDTOK, chunk=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 9}, "`num_frames` must be 5 with protocol vidtok, but got 9"),
        ({"height": 16}, "`height` must be 32 with protocol vidtok"),
        ({"width": 16}, "`width` must be 32 with protocol vidtok"),
        ({"stride": 1}, "`stride` must be left out with protocol vidtok"),
        ({"max_clips": 100}, "`max_clips` must be left out with protocol vidtok"),
        (
            {"features": "transnetv2"},
            "`features` must be the path of i3d_torchscript.pt, or left out, with protocol vid",
        ),
    ],
)
def test_settings_that_contradict_a_protocol_are_refused(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(small(VIDTOK), **settings)


def test_settings_that_agree_with_a_protocol_are_accepted(run):
    evaluation = run(small(VIDTOK), num_frames=5, height=32, width=32)
    assert set(evaluation.metrics) == {"psnr_frames_epsilon", "ssim_valid", "lpips_vgg"}
    assert "i3d_torchscript.pt" in evaluation.protocol.absent["fvd"]


def test_a_model_of_other_channels_is_refused():
    with pytest.raises(
        ValueError, match="`protocol` must be left out for a model of 1 channel, but"
    ):
        VIDTOK.check_model(CausalVAE(replace(TINY, in_channels=1)))


def test_tokenbench_without_scikit_image_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = (
        r"tokenbench without the package scikit-image. Run `pip install .*'scikit-image>=[\d.]+'`\."
    )
    with pytest.raises(ValueError, match=said):
        run(small(TOKENBENCH))


def test_the_command_refuses_in_one_line(data, capsys):
    command = ["evaluate", str(data), "--data", str(data), "--protocol", "vidtok"]
    assert main([*command, "--num_frames", "33"]) == 2
    assert main(command) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "`--num_frames` must be 17 with protocol vidtok, but got 33 (int). Leave out" in first
    assert (
        "`--data` must be the 30 videos of protocol vidtok (MCL-JCV, 30 videos), but got 2 videos."
        in second
    )


def test_the_command_of_the_page_runs(
    fake_lpips, no_plots, model_folder, data, fake_i3d, tmp_path, monkeypatch, capsys
):
    page = re.search(r"```\ntelecine (.*--protocol.*)\n```", PAGE).group(1)
    monkeypatch.setitem(PROTOCOLS, "vidtok", replace(small(VIDTOK), num_frames=13))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "runs/small")
    shutil.copytree(data, "mcl_jcv")
    shutil.copy(fake_i3d, "i3d_torchscript.pt")
    assert main(page.split()) == 0, capsys.readouterr().err
    assert "2 clips, 13 frames of 32 x 32, protocol vidtok" in " ".join(
        capsys.readouterr().out.split()
    )
    published = json.loads((tmp_path / "figures" / "vidtok" / "protocol.json").read_text())[
        "published"
    ]
    assert published["sources"] == list(VIDTOK.sources)


def test_the_page_has_every_text(infos):
    for protocol in PROTOCOLS.values():
        assert f"`{protocol.name}`" in PAGE
        texts = (
            protocol.data,
            *protocol.sources,
            *protocol.not_stated,
            *protocol.deviations,
            *protocol.metrics,
        )
        assert [text for text in texts if text not in PAGE] == []
        assert protocol.describe([Span(infos[0], 0, 4)])["resize"] in PAGE
        assert CLIP_CHOICES[protocol.clips] in PAGE
        assert VALUES[protocol.values] in PAGE


@pytest.mark.slow
def test_the_command_for_ucf101(
    fake_lpips, no_plots, model_folder, tiny_model, fake_i3d, tmp_path, monkeypatch, capsys
):
    """One clip of each video, by a model that takes 4k + 1 frames. Without the I3D, an error, or the rest."""
    page = re.search(r"```\ntelecine (.*--protocol ucf101.*)\n```", PAGE).group(1).split()
    protocol = replace(UCF101, num_videos=6, short_side=32, crop=32)
    monkeypatch.setitem(PROTOCOLS, "ucf101", protocol)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "runs/small")
    shutil.copy(fake_i3d, "i3d_torchscript.pt")
    names = [f"Class{seed // 3}/v_{seed}.mp4" for seed in range(6)]
    for seed, name in enumerate(names):
        write_video(Path("UCF-101", name), waves(14 + 3 * seed, 40, 56, seed), fps=25, crf=4)
    Path("trainlist01.txt").write_text(
        "".join(f"{name} {seed // 3 + 1}\r\n" for seed, name in enumerate(names))
    )
    links = re.search(r"```\n(mkdir ucf101_train\n.*?)```", PAGE, flags=re.DOTALL).group(1)
    subprocess.run(["bash", "-e", "-c", links], check=True)

    option = page.index("--features")
    without = page[:option] + page[option + 2 :]
    assert main(without) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith(
        "`features` must be the path of StyleGAN-V's I3D, for the FVD of protocol ucf101, but got nothing. "
        "Add `--features i3d_torchscript.pt`, or `--features none` for the other metrics alone."
    )
    assert main([*without, "--features", "none"]) == 0
    assert "no fvd: needs the I3D of StyleGAN-V" in capsys.readouterr().out
    assert {*json.loads(Path("figures/ucf101/metrics.json").read_text())} == {"psnr", "lpips_vgg"}

    assert main(page) == 0
    metrics = json.loads(Path("figures/ucf101/metrics.json").read_text())
    videos = [
        protocol.read(span)["video"]
        for span in protocol.select(index_videos(find_videos("ucf101_train"))[0])
    ]
    assert [video.shape for video in videos] == [(3, 16, 32, 32)] * 6
    clips = torch.stack(videos)
    network = I3DFeatures(fake_i3d, torch.device("cpu"))
    padded = torch.cat([clips, clips[:, :, -1:]], dim=2)
    with torch.no_grad():
        recon = tiny_model(padded, sample_posterior=False).video[:, :, :16].clamp(-1, 1)
    psnr = 10 * (4 / (recon - clips).square().mean((1, 2, 3, 4))).log10()
    expected = {
        "psnr": psnr.mean().item(),
        "lpips_vgg": (recon - clips).abs().mean().item(),
        "fvd": frechet_distance(features=network(recon), reference=network(clips)),
    }
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_names_and_metrics_are_known():
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
    assert {key for key, item in PROTOCOLS.items() if key == item.name} == {*PROTOCOLS}
    for protocol in PROTOCOLS.values():
        assert {*protocol.metrics} <= METRICS.keys()


class TestSelection:
    def starts(self, infos, protocol):
        return [
            (span.info.source.stem, span.first_frame, span.last_frame)
            for span in protocol.select(infos)
        ]

    def test_all_clips_with_the_last_one_repeated(self, infos):
        expected = [(name, *frames) for name in "ab" for frames in ((0, 4), (5, 9), (10, 11))]
        assert self.starts(infos, small(VIDTOK)) == expected
        clip = small(VIDTOK).read(small(VIDTOK).select(infos)[2])["video"]
        assert clip.shape == (3, 5, 32, 32)
        assert torch.equal(clip[:, 1:2].expand(-1, 4, -1, -1), clip[:, 1:])
        assert not torch.equal(clip[:, 0], clip[:, 1])

    def test_the_frame_rate_is_rounded(self, infos):
        faster = [replace(info, fps=fps) for info, fps in zip(infos, (60.0, 44.0), strict=True)]
        assert self.starts(faster, small(VIDTOK)) == [
            ("a", 0, 8), ("a", 10, 11), ("b", 0, 4), ("b", 5, 9), ("b", 10, 11)
        ]  # fmt: skip
        with pytest.raises(ValueError, match="at least half of 30 frames a second, but got 14 in"):
            small(VIDTOK).select([replace(info, fps=14.0) for info in infos])

    def test_the_first_clip(self, infos):
        assert self.starts(infos, small(WF_VAE_33)) == [("a", 0, 4), ("b", 0, 4)]
        with pytest.raises(
            ValueError, match="`data` must be videos of at least 33 frames for protocol wf_vae_33"
        ):
            WF_VAE_33.select(infos)

    def test_a_random_clip(self, infos):
        """Its first frame depends on the name of the file alone; shorter videos repeat their last frame."""
        info = infos[0]
        starts = set()
        for index in range(200):
            paths = (Path(f"/elsewhere/{index}.mp4"), Path(f"{index}.mp4"))
            one, other = small(UCF101).select([replace(info, source=path) for path in paths])
            assert one.first_frame == other.first_frame
            assert one.num_frames == 5
            starts.add(one.first_frame)
        assert starts == set(range(NUM_FRAMES - 4))
        (span, _) = replace(small(UCF101), num_frames=15).select(infos)
        assert (span.first_frame, span.last_frame) == (0, 11)
        clip = replace(small(UCF101), num_frames=15).read(span)["video"]
        assert torch.equal(clip[:, 12:], clip[:, 11:12].expand(-1, 3, -1, -1))

    @pytest.mark.parametrize(
        ("num_frames", "fps", "expected"), [(200, 30, 200), (999, 24, 300), (999, 59.94, 600)]
    )
    def test_long_videos_are_cut(self, infos, num_frames, fps, expected):
        (span,) = TOKENBENCH.select([replace(infos[0], pts=array("q", range(num_frames)), fps=fps)])
        assert span.num_frames == expected


class TestReading:
    def test_bilinear_frames_are_those_of_torchvision(self, infos):
        """As `VidTokValDataset`: frames over 255, `Resize`, `CenterCrop`, `Normalize`."""
        protocol = small(VIDTOK)
        frames = read_clip(infos[1], 0, 5).permute(0, 3, 1, 2).float() / 255
        transform = v2.Compose(
            [
                v2.Resize(44, antialias=True),
                v2.CenterCrop((32, 32)),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )
        clip = protocol.read(protocol.select(infos)[3])
        torch.testing.assert_close(
            clip["video"].transpose(0, 1), transform(frames), atol=1e-6, rtol=0
        )
        assert clip["source"].endswith("b.mp4")

    def test_lanczos_frames_are_those_of_pillow_and_smaller_ones_stay(self, infos):
        protocol = small(TOKENBENCH)
        smaller, larger = (protocol.read(span)["video"] for span in protocol.select(infos))
        frame = Image.fromarray(read_clip(infos[1], 0, 1)[0].numpy()).resize(
            (55, 44), Image.Resampling.LANCZOS
        )
        assert np.array_equal(
            ((larger[:, 0] + 1) * 127.5).round().permute(1, 2, 0), np.asarray(frame)
        )
        assert smaller.shape == (3, 8, 40, 56)

    def test_a_clip_that_cannot_be_decoded_is_left_out(self, infos, caplog):
        gone = replace(infos[0], source=Path("gone.mp4"))
        assert small(VIDTOK).read(Span(gone, 0, 4)) is None
        assert "skipping a clip: " in caplog.text

    @pytest.mark.parametrize(
        ("name", "size", "expected"),
        [
            ("vidtok", (1080, 1920), (256, 455)),
            ("vidtok", (1920, 1080), (455, 256)),
            ("vidtok", (100, 200), (256, 512)),
            ("tokenbench", (2160, 3841), (1080, 1921)),
            ("tokenbench", (720, 1280), (720, 1280)),
            ("davis", (480, 854), (480, 854)),
        ],
    )
    def test_sizes(self, name, size, expected):
        assert PROTOCOLS[name].resized_size(*size) == expected

    def test_measured_values(self):
        video = (
            torch.tensor([-3.0, -1.0, 0.5 / 127.5 - 1 + 1e-4, 0.9999, 3.0])
            .view(1, 1, 1, 1, 5)
            .expand(1, 3, 1, 1, 5)
        )
        levels = {
            kind: (
                (replace(VIDTOK, values=kind).measured_values(video)[0, 0, 0, 0] + 1) * 127.5
            ).tolist()
            for kind in ("float", "rounded", "truncated")
        }
        assert levels["float"] == pytest.approx([0, 0, 0.51275, 254.98725, 255], abs=1e-3)
        assert levels["rounded"] == pytest.approx([0, 0, 1, 255, 255], abs=1e-4)
        assert levels["truncated"] == pytest.approx([0, 0, 0, 254, 255], abs=1e-4)


def test_reconstructions_given_as_videos(run, data, tmp_path):
    for seed, (name, height, width) in enumerate((("a.mp4", 40, 56), ("b.mp4", 64, 80))):
        write_video(
            tmp_path / name, noisy(waves(NUM_FRAMES, height, width, seed), 8.0), fps=25, crf=4
        )
    settings = {"protocol": "tokenbench", "data": str(data), "device": "cpu"}
    run(small(TOKENBENCH))
    evaluation = evaluate(tmp_path, EvaluateConfig(**settings))
    assert evaluation.protocol.subject == f"{tmp_path}, as videos"
    assert 25 < evaluation.metrics["psnr_bytes"] < evaluation.metrics["psnr_modulo"] < 40
    same = evaluate(data, EvaluateConfig(**settings)).metrics
    assert (same["ssim_uniform"], same["lpips_vgg"]) == (1, 0)
    assert same["psnr_bytes"] > 180
    assert {len(values) for values in evaluation.per_frame.values()} == {8}
    for changes in (
        {"chunk": 4},
        {"tile": 8},
        {"flat": True, "protocol": None, "num_frames": 2, "height": 32, "width": 32},
    ):
        message = (
            f"`{next(iter(changes))}` must be left out for reconstructions that are given as v"
        )
        with pytest.raises(ValueError, match=message):
            evaluate(tmp_path, EvaluateConfig(**settings | changes))


class PositionAsVideo:
    """An autoencoder whose reconstruction of a frame is the number of the frame in the video, by its position."""

    def covering_clip(self, *size):
        return size

    def __call__(self, video, sample_posterior):
        numbers = pass_options().clip_position.first_frame + torch.arange(video.shape[2])
        return Reconstruction(numbers.view(1, 1, -1, 1, 1).expand_as(video).float(), {})


@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_chunks_do_not_change_the_position_of_frames_in_the_video(chunk, infos):
    """Noise of a decoder that generates is a function of it."""
    reconstructor = ModelReconstructor(PositionAsVideo(), replace(small(UCF101), chunk=chunk), "")
    reconstruction = reconstructor.reconstruct(Span(infos[0], 3, 7), torch.zeros(1, 3, 5, 2, 2))
    assert reconstruction[0, 0, :, 0, 0].tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("protocol", [WF_VAE_25, DAVIS])  # resized by torchvision and by Pillow
def test_arrays_have_the_values_of_videos(protocol, run, tmp_path):
    """Those of 16 bits are rounded to the 8 of the published figures."""
    results = []
    frames = waves(NUM_FRAMES, 40, 56, 1)
    write_video(tmp_path / "a.mkv", frames, fps=25)
    np.save(tmp_path / "a.npy", frames.numpy())
    np.save(tmp_path / "b.npy", frames.numpy().astype(np.uint16) * 257)
    for file in ("a.mkv", "a.npy", "b.npy"):
        evaluation = run(small(protocol), data=str(tmp_path / file))
        results.append((evaluation.metrics, evaluation.protocol.clips_sha256))
    assert results[0] == results[1] == results[2]


def test_whole_videos_that_are_too_short_for_the_i3d_are_refused(run, fake_i3d, tmp_path):
    write_video(tmp_path / "a.mkv", waves(9, 40, 56), fps=25)
    with pytest.raises(
        ValueError,
        match=r"`num_frames` must be at least 10 for fvd, but got 9 \(int\)\. Use longer",
    ):
        run(small(DAVIS), data=str(tmp_path), features=str(fake_i3d))


def test_the_frechet_distance_of_single_clips(run, fake_i3d):
    """Means of the squared distance of `FakeI3D`'s features, as batches of one clip give."""
    evaluation = run(
        replace(small(WF_VAE_25), num_frames=10, posterior="mode", chunk=5), features=str(fake_i3d)
    )
    assert list(evaluation.metrics) == ["psnr_frames", "ssim_valid", "lpips_alex", "fvd_single"]
    assert 0 < evaluation.metrics["fvd_single"] < 1
    assert evaluation.protocol.backbones["fvd_single"].startswith("fake_i3d.pt, sha256 ")
    assert evaluation.protocol.absent == {}
