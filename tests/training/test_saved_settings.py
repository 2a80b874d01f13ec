"""Which settings may change when a run resumes, and how they are written."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from telecine import Ramp, Term
from telecine.losses import mse
from telecine.settings import GANConfig, ReconstructionConfig, TrainConfig
from telecine.training import train
from telecine.training.saved_settings import (
    as_yaml,
    check_same_data,
    check_same_networks,
    saved_settings,
    write_settings,
)


@pytest.fixture
def saved(tiny, tmp_path):
    """Return the folder of a checkpoint of the tiny run that holds its settings only."""
    (tmp_path / "config.yaml").write_text(as_yaml(tiny()))
    return tmp_path


def test_settings_that_cannot_be_written_keep_the_old_ones(tiny, saved, monkeypatch):
    def write_half(path, text, encoding):
        path.write_bytes(text.encode(encoding)[:100])
        raise OSError("disk full")

    before = saved_settings(saved)
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="disk full"):
        write_settings(saved, tiny(seed=9))
    assert saved_settings(saved) == before
    monkeypatch.undo()
    write_settings(saved, tiny(seed=9))
    assert saved_settings(saved)["seed"] == 9


def test_a_name_that_a_file_of_settings_cannot_hold_is_refused_at_once(tiny):
    name = os.fsdecode(b"caf\xe9")
    for setting in ("data", "output_dir"):
        message = rf"`{setting}` must be text in UTF-8, .* but got 'caf\\udce9'\. Rename it"
        with pytest.raises(ValueError, match=message):
            train(tiny(**{setting: name}), console=Console(quiet=True))
    assert not Path(name).exists()


CHANGED_NETWORKS = [
    (lambda c: {"causal_vae": replace(c.causal_vae, base_channels=16)}, "`causal_vae.base_channels` must be 8 as in"),
    (lambda c: {"discriminator": replace(c.discriminator, dim=4)}, "`discriminator.dim` must be 2 as in"),
    (lambda c: {"trainable": replace(c.trainable, weights="decoder")}, "`trainable.weights` must be 'all' as in"),
    (lambda c: {"model": "a/model"}, "`model` must be 'left out' as in .* but got 'given'"),
    (lambda c: {"clips": replace(c.clips, num_frames=9)}, "`clips.num_frames` must be 5 as in"),
    (lambda c: {"clips": replace(c.clips, height=48)}, "`clips.height` must be 32 as in"),
    (lambda c: {"clips": replace(c.clips, width=48)}, "`clips.width` must be 32 as in"),
    (
        lambda c: {"objective": replace(c.objective, adversarial_loss_weight=0.0)},
        "`objective.adversarial_loss_weight > 0` must be True as in",
    ),
    (
        lambda c: {"objective": replace(c.objective, reconstruction=ReconstructionConfig(learn_logvar=True))},
        "`objective.reconstruction.learn_logvar` must be False as in",
    ),
    (
        lambda c: {"objective": replace(c.objective, gan=GANConfig(lecam_loss_weight=Ramp(0.1, start=100)))},
        "`objective.gan.lecam_loss_weight > 0` must be False as in",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGED_NETWORKS)
def test_settings_that_change_the_networks_are_refused(tiny, saved, change, message):
    check_same_networks(tiny(), saved)
    with pytest.raises(ValueError, match=message):
        check_same_networks(replace(tiny(), **change(tiny())), saved)


def test_settings_that_an_older_version_did_not_have_had_their_defaults(tiny, saved):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    del settings["causal_vae"]["bottleneck"]
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    check_same_networks(tiny(), saved)
    discrete = replace(tiny().causal_vae, bottleneck="fsq")
    with pytest.raises(ValueError, match=r"`causal_vae.bottleneck` must be 'gaussian' as in"):
        check_same_networks(tiny(causal_vae=discrete), saved)


def test_other_settings_may_change(tiny, saved):
    objective = replace(
        tiny().objective,
        terms={"gram": 1.0},
        adversarial_loss_weight=0.1,
        reconstruction=ReconstructionConfig(loss="l1"),
        disc_start=3,
    )
    check_same_networks(tiny(objective=objective, seed=3, output_dir="elsewhere"), saved)


def test_a_checkpoint_of_an_earlier_version_is_refused(tiny, saved):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    settings["objective"] = {"recon_loss": "mse", "disc_train_start": 1}
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"must be .* of this version, but got .*0\.1\. Use another --output_dir"):
        check_same_networks(tiny(), saved)


def test_a_run_with_functions_of_the_user_may_be_resumed(tiny, tmp_path):
    def of_another_package(real, fake):
        return mse(reconstruction=fake, target=real)

    of_another_package.__module__, of_another_package.__qualname__ = "other_package.losses", "mine"
    terms = {"extra": Term(lambda reconstruction, target: target.mean(), weight=0.1)}
    terms["extra"].target.__module__, terms["extra"].target.__qualname__ = "other_package.losses", "extra"
    config = tiny(objective=replace(tiny().objective, gan=GANConfig(loss=of_another_package), terms=terms))
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    check_same_networks(config, tmp_path)


def with_term(config, function):
    return replace(config, objective=replace(config.objective, terms={"extra": Term(function, weight=0.1)}))


def test_functions_are_saved_by_the_path_that_imports_them(tiny):
    saved = yaml.safe_load(as_yaml(with_term(tiny(), mse)))["objective"]["terms"]["extra"]
    assert saved["target"] == f"{mse.__module__}.mse"
    assert saved["weight"] == 0.1


def test_functions_that_cannot_be_imported_are_refused(tiny):
    def of_a_script(reconstruction, target):
        return mse(reconstruction=reconstruction, target=target)

    of_a_script.__qualname__ = "of_a_script"
    as_yaml(with_term(tiny(), of_a_script))
    of_a_script.__module__ = "__main__"
    for function in (of_a_script, lambda reconstruction, target: mse(reconstruction=reconstruction, target=target)):
        with pytest.raises(ValueError, match="must be a plain value or an importable function, but got <function"):
            as_yaml(with_term(tiny(), function))


@pytest.mark.parametrize(("before", "now"), [("a", "b"), (None, "a"), ("a", None)])
def test_other_data_is_refused(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data=before)))
    with pytest.raises(ValueError, match=f"`data` must be {before!r} as in .*, but got {now!r}. .*--change_data"):
        check_same_data(TrainConfig(data=now), tmp_path)


@pytest.mark.parametrize(("before", "now"), [("a", "./a/"), ("b/../a", "a"), (None, None)])
def test_the_same_data_may_be_named_in_another_way(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data=before)))
    check_same_data(TrainConfig(data=now), tmp_path)
