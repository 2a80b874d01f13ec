"""The probe of latents: its run, its measures of unseen videos, and its place on the page."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from telecine.__main__ import main
from telecine.autoencoders import CausalVAE
from telecine.report.video import write_video
from telecine.runs import Run
from telecine.settings import CausalVAEConfig

SIZE = ["--num_frames", "5", "--height", "32", "--width", "32", "--max_clips", "4", "--device", "cpu"]
PROBE = ["--probe", "--probe.steps", "4", "--probe.batch_size", "2", "--probe.num_clips", "4"]


def moving(seed):
    """Return 26 frames of 32 x 32 that move over noise."""
    picture = torch.randint(256, (32, 58, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.stack([picture[:, start : start + 32] for start in range(26)])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The command line of a probe of a model on two videos, and of a third that is unseen."""
    folder = tmp_path_factory.mktemp("probe")
    for seed, name in enumerate(("data/one.mp4", "data/two.mp4", "unseen/three.mp4")):
        write_video(folder / name, moving(seed), fps=25)
    torch.manual_seed(0)
    CausalVAE(CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1)).save_pretrained(folder / "model")
    return ["latents", str(folder / "model"), "--data", str(folder / "data"), *SIZE, *PROBE]


@pytest.fixture(scope="module")
def done(arguments, tmp_path_factory):
    """The folder that the command has written, and latents.json of it and of a second call, from update 3 on."""
    output, load = tmp_path_factory.mktemp("output"), "telecine.evaluation.denoising.load_feature_network"
    unseen = str(Path(arguments[3]).parent / "unseen")
    texts = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, lambda *_: lambda video: video.mean((2, 3, 4)))
            main([*arguments, "--probe.val_data", unseen, "--probe.features", "transnetv2", "-o", str(output)])
        texts.append((output / "latents.json").read_text())
        (run,) = (each for each in (output / "probe").iterdir() if (each / "metrics.jsonl").is_file())
        before = [step for step, _ in Run(run).checkpoints.all()]
        if len(texts) == 1:
            shutil.rmtree(Run(run).checkpoints.path(4))
        assert before == [3, 4]
    return output, texts


@pytest.mark.slow
def test_what_it_measures(done):
    probe = json.loads(done[1][0])["models"][0]["probe"]
    assert len(probe["losses"]) == len(probe["linear_losses"]) == 11
    assert all(0 < each < 10 for each in probe["losses"] + probe["linear_losses"])
    names = ["reconstructions to unseen clips", "samples to unseen clips", "samples to reconstructions"]
    assert list(probe["frechet"]) == names
    assert all(each > 0 for each in probe["frechet"].values())
    assert (done[0] / probe["picture"]).is_file()
    assert f'src="{probe["picture"]}"' in (done[0] / "latents.html").read_text()


@pytest.mark.slow
def test_a_probe_resumes_to_the_bit(done):
    first, second = (json.loads(text)["models"][0] for text in done[1])
    assert first["probe"].pop("seconds") > 0
    assert second["probe"].pop("seconds") > 0
    assert first == second


def test_seen_videos_are_refused(arguments, tmp_path, capsys):
    assert main([*arguments, "-o", str(tmp_path)]) == 2
    assert "`--data` must be ten videos or more, of which some are held out whole" in capsys.readouterr().err
