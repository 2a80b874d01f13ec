"""The controls of a probe, and which figure predicts its order."""

import pytest
import torch

from telecine.models import CausalVAE
from telecine.settings import CausalVAEConfig, LatentsConfig, ProbeConfig
from telecine.video.write import write_video


def test_controls_have_the_size_of_the_model(benchmark_module, monkeypatch, tmp_path):
    module = benchmark_module("probe")
    monkeypatch.setattr(module, "NUM_FITTED", 4)
    for seed, name in enumerate(("data/one.mp4", "unseen/two.mp4")):
        frames = torch.randint(
            256, (12, 32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
        )
        write_video(tmp_path / name, frames, fps=25)
    model = CausalVAE(CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1))
    model.save_pretrained(tmp_path / "model")
    probe = ProbeConfig(val_data=str(tmp_path / "unseen"))
    size = {"num_frames": 5, "height": 32, "width": 32}
    config = LatentsConfig(data=str(tmp_path / "data"), device="cpu", probe=probe, **size)
    linear, noise = module.controls(str(tmp_path / "model"), config)
    video = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = [encoder.encode(video).mode() for encoder in (model, linear, noise)]
        again = noise.encode(video[1:]).mode()
    assert len({latent.shape for latent in latents}) == 1
    torch.testing.assert_close(again, latents[2][1:])
    assert not torch.allclose(*latents[2])
    assert latents[2].std() == pytest.approx(1, abs=0.1)


def test_rank_correlations_are_those_of_the_order(benchmark_module):
    module = benchmark_module("probe")
    assert module.rank_correlation([1.0, 2.0, 9.0], [0.1, 0.2, 0.3]) == "+1.00"
    assert module.rank_correlation([1.0, 2.0], [3.0, 3.0]) == "n/a"
    figures = [
        {"rank": -value, "probe: share": value, "probe: seconds": 1.0} for value in (1.0, 2.0, 9.0)
    ]
    table = module.table_of_correlations(figures)
    assert table.splitlines()[0] == "| rank correlation | rank |"
    assert table.splitlines()[2:] == ["| probe: share | -1.00 |"]
