"""A tiny autoencoder, moving videos, and noisy copies of them as reconstructions."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from telecine.models import CausalVAE
from telecine.settings import CausalVAEConfig
from telecine.video.write import write_video

from .videos import noisy, waves

TINY = CausalVAEConfig(
    time_compression=4,
    spatial_compression=4,
    latent_channels=4,
    patch_size=2,
    base_channels=8,
    blocks_per_level=1,
)


class FakeI3D(nn.Module):
    """Has the signature of the published I3D. Its 4 features are means of parts of the input."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale
        assert not resize
        assert return_features
        assert list(x.shape[3:]) == [224, 224]
        first = x[:, :, 0].mean(dim=[2, 3])
        last = x[:, 2, -1].mean(dim=[1, 2])
        return torch.cat([first, last[:, None]], dim=1)


class Distance(nn.Module):
    """Stands for LPIPS: the mean absolute difference of each frame."""

    def __init__(self, net, *, weights):
        super().__init__()

    def forward(self, *, reconstruction, target):
        return (reconstruction - target).abs().flatten(1).mean(1)


@pytest.fixture
def fake_lpips(monkeypatch):
    """Replace LPIPS, whose weights take seconds to load, by `Distance`."""
    monkeypatch.setattr("telecine.evaluation.metrics.lpips.LPIPS", Distance)
    monkeypatch.setattr("telecine.evaluation.metrics.lpips.load_backbone", lambda net: {})


@pytest.fixture
def no_plots(monkeypatch):
    """Write empty files instead of plots, which take a second each; `test_compare.py` and others test these."""
    evaluation = "telecine.evaluation"
    for name in ("result.plot_frames", "result.plot_passes", "compare.plot_frames"):
        monkeypatch.setattr(f"{evaluation}.{name}", lambda curves, path: path.touch())
    monkeypatch.setattr(
        f"{evaluation}.compare.plot_differences", lambda differences, title, path: path.touch()
    )


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    return CausalVAE(TINY).eval()


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of three videos of 26 frames of 48 x 64, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("one.mp4", "two.mp4", "below/three.mp4")):
        write_video(folder / name, waves(seed=seed), fps=25, crf=4)
    return folder


@pytest.fixture(scope="session")
def reconstructions(videos, tmp_path_factory):
    """Folders of the same videos with little and with much noise. In the second, a video has another suffix."""
    folders = {}
    for label, scale in (("little", 4.0), ("much", 16.0)):
        folders[label] = tmp_path_factory.mktemp(label)
        for seed, name in enumerate(("one.mp4", "two.mp4", "below/three.mp4")):
            write_video(folders[label] / name, noisy(waves(seed=seed), scale, seed), fps=25, crf=4)
    shutil.move(folders["much"] / "one.mp4", folders["much"] / "one.m4v")
    return folders


@pytest.fixture(scope="session")
def fake_i3d(tmp_path_factory):
    """The path of `FakeI3D` as TorchScript."""
    path = tmp_path_factory.mktemp("i3d") / "fake_i3d.pt"
    torch.jit.script(FakeI3D()).save(str(path))
    return path
