"""The probe of a latent: its run, its measures of unseen videos, and the page of `telecine latents --probe`."""

import json
import shutil
from fractions import Fraction

import pytest
import torch

from telecine.cli.program import run
from telecine.data import index_video
from telecine.data.lazy.header import read_header
from telecine.evaluation.metrics.metric import Metric
from telecine.models import CausalVAE
from telecine.runs import Run
from telecine.runs.saved_settings import write_settings
from telecine.settings import CausalVAEConfig, ClipConfig, TrainConfig
from telecine.tools.latents.denoising import LEVELS
from telecine.training import TrainingError
from telecine.video.write import write_video

CLIPS = "--num_frames 5 --height 32 --width 32 --max_clips 4 --device cpu"
PROBE = "--probe --probe.steps 4 --probe.batch_size 2 --probe.num_clips 4"
DISTANCES = [
    "reconstructions to unseen clips",
    "samples to unseen clips",
    "samples to reconstructions",
]


def moving(seed):
    """Return 26 frames of 32 x 32 that move over noise."""
    picture = torch.randint(
        256, (32, 58, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return torch.stack([picture[:, start : start + 32] for start in range(26)])


@pytest.fixture
def arguments(tmp_path):
    """The command line of a probe of a model on two videos; a third is unseen."""
    for seed, name in enumerate(("data/one.mp4", "data/two.mp4", "unseen/three.mp4")):
        write_video(tmp_path / name, moving(seed), fps=25)
    torch.manual_seed(0)
    CausalVAE(CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1)).save_pretrained(
        tmp_path / "model"
    )
    folders = f"{tmp_path}/model --data {tmp_path}/data -o {tmp_path}/latents"
    return f"latents {folders} {CLIPS} {PROBE}".split()


@pytest.mark.slow
def test_it_measures_unseen_videos_on_a_page_and_resumes_to_the_bit(
    arguments, monkeypatch, tmp_path, capsys
):
    output = tmp_path / "latents"

    def network(video):
        return video.mean((2, 3, 4))

    network.metric = Metric(name="a network", definition="", min_frames=2)
    monkeypatch.setattr("telecine.evaluation.metrics.frechet.TransNetFeatures", lambda _: network)
    options = [*arguments, f"--probe.val_data={tmp_path}/unseen", "--probe.features=transnetv2"]
    same_encoder = tmp_path / "same_encoder"
    model = CausalVAE.from_pretrained(tmp_path / "model")
    model.decoder.linear.maps[0].bias.data.add_(0.1)
    model.save_pretrained(same_encoder)
    run([options[0], str(same_encoder), *options[1:]])
    assert "velocity loss" in " ".join(capsys.readouterr().out.split())

    text = (output / "latents.json").read_text()
    other, model = json.loads(text)["models"]
    probe = model["probe"]
    assert other["probe"]["losses"] == probe["losses"], "the same latents, and the same noise"
    assert other["probe"]["samples"] != probe["samples"]
    assert len(probe["losses"]) == len(probe["linear_losses"]) == len(LEVELS)
    assert all(0 < loss < 10 for loss in probe["losses"] + probe["linear_losses"])
    assert list(probe["frechet"]) == DISTANCES
    assert all(distance > 0 for distance in probe["frechet"].values())
    assert json.loads(text)["protocol"]["probe"]["steps"] == 4
    page = (output / "latents.html").read_text()
    assert f'<video src="{probe["samples"]}"' in page
    assert (output / probe["samples"]).is_file()

    trained = Run(output / probe["samples"].removesuffix(".mp4"))
    assert [step for step, _ in trained.checkpoints.all()] == [3, 4]
    shutil.rmtree(trained.checkpoints.path(4))
    (tmp_path / "data").rename(tmp_path / "moved")
    run([word.replace(str(tmp_path / "data"), str(tmp_path / "moved")) for word in options])
    (again,) = json.loads((output / "latents.json").read_text())["models"]
    assert again["probe"].pop("seconds") > 0
    assert probe.pop("seconds") > 0
    assert again == model


@pytest.mark.slow
def test_videos_of_a_lazy_run_whose_headers_are_not_exact(arguments, tmp_path):
    uneven = [*range(20), *range(30, 36)]
    for seed, path in enumerate(sorted((tmp_path / "data").iterdir())):
        path.unlink()
        path = path.with_suffix(".mkv")
        write_video(path, moving(seed), fps=25, pts=uneven, time_base=Fraction(1, 25))
        assert read_header(path, ClipConfig())[0] != index_video(path).num_frames
    checkpoint = Run(tmp_path / "run").checkpoints.path(1)
    shutil.copytree(tmp_path / "model", checkpoint / "ema")
    (checkpoint / "state.json").write_text("{}")
    write_settings(checkpoint, TrainConfig(clips=ClipConfig(index="lazy")))
    command, _, *options = arguments
    run([command, str(tmp_path / "run"), *options, f"--probe.val_data={tmp_path}/unseen"])
    (model,) = json.loads((tmp_path / "latents" / "latents.json").read_text())["models"]
    assert len(model["probe"]["losses"]) == len(LEVELS)


def test_seen_videos_are_refused(arguments):
    with pytest.raises(
        ValueError, match=r"`data` must be ten videos .* Add some, or set `probe\.val_data`"
    ):
        run(arguments)
    data = arguments[arguments.index("--data") + 1]
    with pytest.raises(
        ValueError,
        match=r"`probe\.val_data` must be other videos than `data`, but got .* Name unseen",
    ):
        run([*arguments, "--probe.val_data", data])


def test_what_the_probe_cannot_do_is_refused_before_it_trains(arguments, monkeypatch, tmp_path):
    def network(video):
        return torch.zeros(len(video), 6)

    unseen = [*arguments, f"--probe.val_data={tmp_path}/unseen", "--probe.features=transnetv2"]
    monkeypatch.setattr("telecine.evaluation.metrics.frechet.TransNetFeatures", lambda _: network)
    monkeypatch.setattr("telecine.tools.latents.probe.train", None)
    network.metric = Metric(name="a network", definition="", min_frames=10)
    with pytest.raises(
        ValueError, match="`num_frames` must be at least 10 for a network, but got 5"
    ):
        run(unseen)
    network.metric = Metric(name="a network", definition="", min_frames=2)
    with pytest.raises(
        ValueError,
        match=r"`probe\.features` must be left out here, but got transnetv2: needs at least 7 clips, not 4",
    ):
        run(unseen)
    with pytest.raises(
        ValueError,
        match=r"`probe\.val_data` must be left out without `--probe`, but got '.*unseen'\. Add `--probe`",
    ):
        run([word for word in unseen if word != "--probe"])
    write_video(tmp_path / "unseen" / "three.mp4", moving(2)[:3], fps=25)
    with pytest.raises(
        ValueError,
        match=r"`probe\.val_data` must be held-out files with a decodable clip of 5 frames",
    ):
        run(unseen)


def test_other_files_in_the_same_folder_have_another_run(arguments, monkeypatch, tmp_path):
    folders = []

    def train(config, **_):
        folders.append(config.output_dir)
        raise TrainingError("it would train")

    monkeypatch.setattr("telecine.tools.latents.probe.train", train)
    for seed in (None, None, 3):
        if seed is not None:
            write_video(tmp_path / "data" / "four.mp4", moving(seed), fps=25)
        with pytest.raises(TrainingError):
            run([*arguments, "--probe.val_data", str(tmp_path / "unseen")])
    first, again, changed = folders
    assert first == again != changed
