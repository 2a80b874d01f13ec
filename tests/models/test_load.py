"""The class of an autoencoder is read from its folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from telecine import models
from telecine.data import index_video, read_clip, sample_videos, video_from_bytes
from telecine.evaluation.metrics.pixels import psnr
from telecine.models import CausalVAE, load_autoencoder
from telecine.models.student import StudentAutoencoder
from telecine.runs.checkpoints import Checkpoints
from telecine.settings import CausalVAEConfig

from .helpers import edit_config
from .tiny_models import tiny_model

SMALL = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)


def test_a_folder_of_the_name_of_the_packaged_model_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CausalVAE(SMALL).save_pretrained("tiny")
    model = load_autoencoder("tiny")
    assert isinstance(model, CausalVAE)
    assert model.config == SMALL


@pytest.mark.parametrize("subfolder", [None, "model"])
def test_a_causal_vae_on_the_hub(hub_cache, monkeypatch, subfolder):
    model = CausalVAE(SMALL)
    hub_cache("me/faces", model, subfolder or "")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    loaded = load_autoencoder("me/faces", subfolder=subfolder)
    assert isinstance(loaded, CausalVAE)
    assert torch.equal(next(loaded.parameters()), next(model.parameters()))


def test_a_student_on_the_hub(hub_cache):
    teacher = CausalVAE(SMALL)
    hub_cache("me/teacher", teacher)
    hub_cache("me/student", StudentAutoencoder.of(teacher, "me/teacher", load_autoencoder, SMALL))
    loaded = load_autoencoder("me/student")
    assert isinstance(loaded, StudentAutoencoder)
    assert torch.equal(next(loaded.encoder_model.parameters()), next(teacher.parameters()))


def test_a_model_of_diffusers_on_the_hub(hub_cache):
    hub_cache("me/wan", tiny_model("wan"), "vae")
    assert type(load_autoencoder("me/wan").module).__name__ == "AutoencoderKLWan"


def test_a_model_that_the_hub_cannot_give(hub_cache):
    with pytest.raises(
        ConnectionError,
        match="'me/faces', which is not in the cache, and the Hub cannot be reached",
    ):
        load_autoencoder("me/faces")


@pytest.mark.parametrize("subfolder", [None, "vae", "another"])
@pytest.mark.slow
def test_a_diffusers_model(tmp_path, subfolder):
    raw = tiny_model("wan")
    raw.save_pretrained(tmp_path / (subfolder or ""))
    if subfolder:
        (tmp_path / "model_index.json").write_text(
            json.dumps({"vae": ["diffusers", "AutoencoderKLWan"]})
        )
    # The subfolder "vae" is the default; others must be passed.
    model = load_autoencoder(str(tmp_path), subfolder="another" if subfolder == "another" else None)
    torch.testing.assert_close(model.module.state_dict(), raw.state_dict(), rtol=0, atol=0)


def test_a_folder_that_does_not_exist(tmp_path):
    for name in (tmp_path / "none", "./none", "none"):
        with pytest.raises(FileNotFoundError, match=r"the model must be .* which does not exist"):
            load_autoencoder(name)
    with pytest.raises(
        FileNotFoundError, match=r"or `tiny`, but got 'tinny', .*exist\. Did you mean `tiny`\?"
    ):
        load_autoencoder("tinny")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "t.txt").write_text("a model")
    with pytest.raises(
        FileNotFoundError, match=r"the model .*t\.txt', which is a file.* come after it"
    ):
        load_autoencoder(tmp_path / "t.txt")


def test_a_run_and_a_checkpoint(tmp_path):
    saved = {}
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        temporary = checkpoints.begin(step)
        for weights in ("ema", "model"):
            saved[step, weights] = CausalVAE(SMALL)
            saved[step, weights].save_pretrained(temporary / weights)
        checkpoints.finish(step, temporary, keep=2)
    for path, expected in (
        (tmp_path, saved[2, "ema"]),
        (checkpoints.path(2) / "model", saved[2, "model"]),
        (checkpoints.path(1), saved[1, "ema"]),
    ):
        assert torch.equal(load_autoencoder(path).last_layer, expected.last_layer)


@pytest.mark.parametrize("subfolder", [None, "another"])
def test_a_folder_without_a_model(tmp_path, subfolder):
    with pytest.raises(
        ValueError, match=r"a run with a checkpoint, a folder with config\.json or vae/config"
    ):
        load_autoencoder(tmp_path, subfolder=subfolder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base_dim": 4}, "a configuration with `_class_name`"),
        ({"_class_name": "Other"}, "a model class of diffusers"),
    ],
)
def test_a_config_without_a_known_class(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path)


@pytest.mark.slow
def test_diffusers_and_slow_packages_are_imported_only_where_they_are_used(tmp_path):
    slow = (
        "torchvision",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torchmetrics",
        "matplotlib",
        "scipy",
    )
    CausalVAE(SMALL).save_pretrained(tmp_path / "causal")
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    code = f"""
import sys
import telecine.cli.program, telecine.training
assert not {{"diffusers", *{slow!r}}} & {{*sys.modules}}
sys.modules["diffusers"] = None  # as if it were not installed
telecine.models.load_autoencoder({str(tmp_path / "causal")!r})
try:
    telecine.models.load_autoencoder({str(tmp_path / "wan")!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "This model needs diffusers. Run `pip install 'diffusers>=" in done.stdout


def test_weights_of_a_checkpoint_that_were_changed_since(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    temporary = checkpoints.begin(3)
    CausalVAE(SMALL).save_pretrained(temporary / "ema")
    checkpoints.finish(3, temporary, keep=1)
    folder = checkpoints.path(3) / "ema"
    load_autoencoder(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{path}` must be as it was written, but got other bytes"
    ):
        load_autoencoder(folder)


class TestPackaged:
    """The trained model of the package."""

    def test_it_is_loaded_by_name_and_beats_its_linear_maps(self):
        model = load_autoencoder("tiny")
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert model.latent_statistics is not None
        frames = read_clip(index_video(sample_videos()[0]), 0, 9, size=(64, 80))
        clip = video_from_bytes(frames)[None]
        with torch.no_grad():
            latent = model.encode(clip).mode()
            videos = model.decode(latent), model.decoder.linear(latent)
        whole, linear = (psnr(reconstruction=video, target=clip).item() for video in videos)
        assert whole > max(linear + 1, 25)

    def test_damage_is_noticed(self, tmp_path):
        shutil.copytree(Path(models.__file__).parent / "packaged", tmp_path / "packaged")
        path = tmp_path / "packaged" / "tiny" / "config.json"
        load_autoencoder(path.parent)
        path.write_text(path.read_text().replace("}", " }"))
        with pytest.raises(ValueError, match=rf"{path}` must be a file of"):
            load_autoencoder(path.parent)


def test_a_configuration_that_is_far_larger_than_the_weights(tmp_path):
    CausalVAE(SMALL).save_pretrained(tmp_path)
    edit_config(tmp_path, base_channels=2**16, latent_channels=2**16)
    with pytest.raises(
        ValueError,
        match=r"must be a configuration that its weights belong to, but got one of \d{12,}",
    ):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "must be JSON, but got other text .*recursion"),
        (
            '{"_class_name": "AutoencoderKLWan", "num_res_blocks": 10000000}',
            "`num_res_blocks in .* at most 65536",
        ),
        (
            '{"_class_name": "AutoencoderKLWan", "dim_mult": [1, 10000000]}',
            "`dim_mult in .* at most 65536",
        ),
    ],
)
def test_configurations_that_would_take_forever(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path / "config.json")
