"""Evaluations of models and of videos, in one process and in two."""

import errno
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from telecine.data import find_videos, index_videos, read_clip, video_from_bytes
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics import METRICS, default_metrics
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.models import CausalVAE
from telecine.runs import Run
from telecine.runs.saved_settings import write_settings
from telecine.settings import ClipConfig, EvaluateConfig

SMALL = {"num_frames": 5, "height": 32, "width": 48, "device": "cpu"}
# Too small for LPIPS, whose weights are then not loaded.
TINY = {"num_frames": 5, "height": 12, "width": 12, "device": "cpu"}
PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_a_model_is_measured_on_center_crops(model_folder, tiny_model, videos):
    evaluation = evaluate(model_folder, EvaluateConfig(data=str(videos), max_clips=4, **TINY))
    assert set(evaluation.metrics) == {"psnr", "ssim", "flicker", "sharpness"}
    assert (
        evaluation.protocol.absent["lpips_vgg"] == "needs frames of at least 16 x 16, not 12 x 12"
    )
    assert (evaluation.protocol.num_clips, evaluation.protocol.num_videos) == (4, 3)
    assert evaluation.protocol.fps == 25
    assert evaluation.protocol.better["flicker"] == METRICS["flicker"].better
    clip = evaluation.per_clip[0]
    info = next(
        info for info in index_videos(find_videos(videos))[0] if str(info.source) == clip["source"]
    )
    size = ClipConfig(height=12, width=12).val_bucket.decode_size(info.height, info.width, 1.0)
    frames = read_clip(info, clip["start"], 5, size=size)
    top, left = ((side - kept) // 2 for side, kept in zip(size, (12, 12), strict=True))
    target = video_from_bytes(frames[:, top : top + 12, left : left + 12])[None]
    metrics = ReconstructionMetrics(metrics=("psnr", "flicker"))
    with torch.no_grad():
        metrics.update(
            reconstruction=tiny_model(target, sample_posterior=False).video, target=target
        )
    assert {name: clip[name] for name in ("psnr", "flicker")} == pytest.approx(
        metrics.compute(), abs=1e-5
    )


def test_bright_clips_are_no_warning(tiny_model, tmp_path):
    """The range of what telecine has decoded is known."""
    Image.new("RGB", (12, 12), (200, 210, 220)).save(tmp_path / "bright.png")
    config = EvaluateConfig(data=str(tmp_path), height=12, width=12, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no value below 0")
        assert evaluate(tiny_model, config).metrics["psnr"] > 0


def test_it_is_without_tf32(tiny_model, videos):
    allowed = []
    tiny_model.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    evaluation = evaluate(tiny_model, EvaluateConfig(data=str(videos), max_clips=1, **TINY))
    assert allowed
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32, "the default of PyTorch"
    assert evaluation.protocol.tf32 is False


def fake_run(model_folder, folder, data):
    """Write a run whose settings name this data, and return its folder."""
    checkpoint = Run(folder).checkpoints.path(1)
    shutil.copytree(model_folder, checkpoint / "ema")
    (checkpoint / "state.json").write_text("{}")
    write_settings(checkpoint, {"data": data, "clips": {}})
    return folder


@pytest.mark.parametrize(
    "relation", ["the folder", "a file", "another copy", "gone", "several", "addresses"]
)
def test_an_evaluation_on_clips_that_were_trained_on_says_so(
    model_folder, videos, tmp_path, caplog, relation
):
    first = str(min(videos.glob("*.mp4")))
    copy = shutil.copy(first, tmp_path / "copy.mp4")
    gone = str(tmp_path / "gone")
    data = {
        "the folder": str(videos),
        "a file": first,
        "another copy": str(copy),
        "gone": gone,
        "several": (gone, "s3://bucket/videos", first, str(copy)),
        "addresses": ("s3://bucket/one", "s3://bucket/two"),
    }
    run = fake_run(model_folder, tmp_path / "run", data[relation])
    evaluate(run, EvaluateConfig(data=str(videos), max_clips=1, **TINY))
    notes = [text for text in caplog.messages if "are in the data of the run" in text]
    number = {"the folder": "3 of 3", "a file": "1 of 3", "several": "1 of 3"}.get(relation)
    assert [note.partition(" files")[0] for note in notes] == ([number] if number else [])
    assert "is not known" not in caplog.text


@pytest.mark.parametrize(
    "data", [5, ["a", 5], "{0..99999999999}.mp4", "{0..9}" * 8, f"{{0..{'9' * 99}}}.mp4"]
)
def test_a_run_with_strange_data_is_measured(model_folder, videos, tmp_path, caplog, data):
    """A pattern of another run's settings must not fill the memory either."""
    run = fake_run(model_folder, tmp_path / "run", data)
    assert evaluate(run, EvaluateConfig(data=str(videos), max_clips=1, **TINY)).metrics["psnr"] > 0
    is_said = "whether the model has trained on these files is not known" in caplog.text
    assert is_said != isinstance(data, str)


def test_a_run_of_which_one_path_cannot_be_read_is_measured(
    model_folder, videos, tmp_path, caplog, monkeypatch
):
    run = fake_run(model_folder, tmp_path / "run", ["/colleague/videos", str(videos)])
    stat = os.stat

    def refuse(path, *arguments, **options):
        if str(path).startswith("/colleague"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(
        Path, "stat", refuse
    )  # of Python 3.10, which keeps the `os.stat` that it has imported
    assert evaluate(run, EvaluateConfig(data=str(videos), max_clips=1, **TINY)).metrics["psnr"] > 0
    assert "is not known: [Errno 13] Permission denied: '/colleague/videos'" in caplog.text
    assert "3 of 3 files are in the data of the run" in caplog.text


def test_the_decoder_of_another_model(model_folder, tiny_model, videos, tmp_path):
    config = EvaluateConfig(data=str(videos), max_clips=1, **TINY)
    own = evaluate(model_folder, config)
    same = evaluate(model_folder, replace(config, decoder=str(model_folder)))
    assert same.metrics == own.metrics
    assert same.protocol.decoder == str(model_folder)
    assert same.protocol.subject == f"{model_folder}, decoded by {model_folder}"
    torch.manual_seed(1)
    CausalVAE(tiny_model.config).save_pretrained(tmp_path / "other")
    assert evaluate(model_folder, replace(config, decoder=str(tmp_path / "other"))) != own
    wider = CausalVAE(replace(tiny_model.config, latent_channels=8))
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match="`decoder` must be a model with the latents of the meas"):
        evaluate(model_folder, replace(config, decoder=str(tmp_path / "wider")))


def test_images_have_no_flicker(model_folder, videos):
    evaluation = evaluate(
        model_folder,
        EvaluateConfig(**{**TINY, "num_frames": 1}, data=str(videos), max_clips=1, flat=True),
    )
    assert {"flat_error", "flat_grid"} < set(evaluation.protocol.metrics)
    assert "flicker" not in evaluation.metrics
    assert evaluation.protocol.absent["flicker"] == "needs at least 2 frames, not 1"


@pytest.mark.usefixtures("cached_weights")
@pytest.mark.slow
def test_files_are_written(model_folder, videos, tmp_path):
    evaluation = evaluate(
        model_folder, EvaluateConfig(data=str(videos), max_clips=2, **SMALL), output=tmp_path
    )
    assert set(evaluation.metrics) == {*default_metrics(), "lpips_vgg", "lpips_alex"} - {"ms_ssim"}
    assert evaluation.protocol.absent == {
        "ms_ssim": "needs frames of at least 176 x 176, not 32 x 48"
    }
    curves = json.loads((tmp_path / "frames.json").read_text())
    assert curves == evaluation.per_frame
    assert set(curves) == {"psnr", "ssim", "lpips_vgg", "lpips_alex"}
    assert {len(curve) for curve in curves.values()} == {5}
    for name in ("ssim", "lpips_vgg", "lpips_alex"):
        assert sum(curves[name]) / 5 == pytest.approx(evaluation.metrics[name], abs=1e-6)
    with Image.open(tmp_path / "frames.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json", "clips.json", "frames.json", "frames.png", "protocol.json"
    }  # fmt: skip


@pytest.mark.usefixtures("fake_lpips")
def test_videos_are_measured_at_their_size(videos, reconstructions):
    settings = {"data": str(videos), "max_clips": 1, "device": "cpu"}
    noisy = evaluate(reconstructions["little"], EvaluateConfig(num_frames=5, **settings))
    assert (noisy.protocol.height, noisy.protocol.width, noisy.protocol.num_frames) == (48, 64, 5)
    assert 30 < noisy.metrics["psnr"] < 45
    same = evaluate(videos, EvaluateConfig(num_frames=5, **settings))
    assert same.metrics["psnr"] == pytest.approx(100)
    assert same.metrics["flicker"] == same.metrics["lpips_vgg"] == 0
    assert same.protocol.clips_sha256 == noisy.protocol.clips_sha256
    other = evaluate(videos, EvaluateConfig(num_frames=5, height=12, width=12, **settings))
    assert other.protocol.clips_sha256 != noisy.protocol.clips_sha256


@pytest.mark.slow
def test_the_frechet_distance_is_reported_with_its_network(videos, reconstructions, fake_i3d):
    settings = {**TINY, "num_frames": 10, "data": str(videos), "features": str(fake_i3d)}
    much = evaluate(reconstructions["much"], EvaluateConfig(**settings))
    assert much.protocol.num_clips == 6
    assert 0 < much.metrics["fvd"] < 0.1
    assert "6 clips" in much.protocol.metrics["fvd"]
    assert much.protocol.backbones["fvd"].startswith("fake_i3d.pt, sha256 ")
    little = evaluate(reconstructions["little"], EvaluateConfig(**settings))
    for name, is_smaller in (("fvd", True), ("psnr", False), ("ssim", False), ("flicker", True)):
        assert (little.metrics[name] < much.metrics[name]) == is_smaller, name
    few = evaluate(reconstructions["much"], EvaluateConfig(**settings, max_clips=4))
    assert "fvd" not in few.metrics
    reason = few.protocol.absent["fvd"]
    assert reason == "needs at least 5 clips, not 4: with fewer, the covariance is singular"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "`data` must be a file, or a folder of files, but got nothing"),
        ({"features": "nowhere.pt"}, "nowhere.pt, which does not exist"),
        ({"features": "i3d"}, "`num_frames` must be at least 10 for fvd, but got 5"),
        ({"num_frames": 6}, "4k\\+1"),
        ({"num_frames": 29}, "a clip of 29 frames"),
        ({"max_clips": 0}, "`max_clips` must be a positive int"),
        ({"flat": True, "protocol": "davis"}, "`flat` must be false with a protocol"),
    ],
)
def test_invalid_settings_raise(model_folder, videos, fake_i3d, changes, message):
    if changes.get("features") == "i3d":
        changes = {"features": str(fake_i3d)}
    with pytest.raises(ValueError, match=message):
        evaluate(model_folder, EvaluateConfig(**{"data": str(videos), **TINY, **changes}))


def test_data_is_no_configuration():
    with pytest.raises(
        ValueError, match="`config` must be of the class `EvaluateConfig`, but got 'my_videos'"
    ):
        evaluate("tiny", "my_videos")


def test_clips_that_cannot_be_decoded_are_left_out(model_folder, videos, monkeypatch):
    read = ConfiguredClips.read

    def read_only_two(clips, span):
        return read(clips, span) if span.info.source.stem == "two" else None

    monkeypatch.setattr(ConfiguredClips, "read", read_only_two)
    config = EvaluateConfig(data=str(videos), **{**TINY, "num_frames": 25})
    evaluation = evaluate(model_folder, config)
    assert [Path(clip["source"]).name for clip in evaluation.per_clip] == ["two.mp4"]
    monkeypatch.setattr(ConfiguredClips, "read", lambda clips, span: None)
    with pytest.raises(
        ValueError, match="`data` must be files with a decodable clip, but got 3 clips that cannot"
    ):
        evaluate(model_folder, config)


@pytest.mark.slow
def test_two_processes_give_the_same_figures(model_folder, videos, fake_i3d, tmp_path, forks):
    """Evaluates 5 clips, so that the processes get different numbers of them."""
    settings = {
        "data": str(videos),
        "num_frames": 13,
        "height": 12,
        "width": 16,
        "max_clips": 5,
        "device": "cpu",
    }
    settings["features"] = str(fake_i3d)
    alone = evaluate(model_folder, EvaluateConfig(**settings))
    (line,) = re.findall(r"^torchrun (.*) evaluate ", PAGE, flags=re.MULTILINE)
    command = ["-m", "torch.distributed.run", *line.split()]
    command += ["evaluate", str(model_folder), "--output", str(tmp_path)]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = forks.run(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lpips_alex") == 1, "one process prints"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "fvd" in metrics
    assert metrics == pytest.approx(alone.metrics, abs=1e-6, rel=1e-6)
    clips = json.loads((tmp_path / "clips.json").read_text())
    assert [(clip["source"], clip["start"]) for clip in clips] == [
        (clip["source"], clip["start"]) for clip in alone.per_clip
    ]
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol == json.loads(json.dumps(asdict(alone.protocol)))
