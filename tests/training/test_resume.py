"""Which settings may change when a run resumes."""

from dataclasses import replace

import pytest
import yaml

from telecine import Ramp, Term
from telecine.losses import mse
from telecine.runs.settings import _as_yaml
from telecine.settings import GANConfig, ReconstructionConfig, TrainConfig
from telecine.training.resume import _check_same_data, _check_same_networks, changed_settings


@pytest.fixture
def saved(tiny, tmp_path):
    """Return the folder of a checkpoint of the tiny run that holds its settings only."""
    (tmp_path / "config.yaml").write_text(_as_yaml(tiny()))
    return tmp_path


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
    _check_same_networks(tiny(), saved)
    with pytest.raises(ValueError, match=message):
        _check_same_networks(replace(tiny(), **change(tiny())), saved)


def test_settings_that_an_older_version_did_not_have_had_their_defaults(tiny, saved):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    del settings["causal_vae"]["bottleneck"]
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    _check_same_networks(tiny(), saved)
    discrete = replace(tiny().causal_vae, bottleneck="fsq")
    with pytest.raises(ValueError, match=r"`causal_vae.bottleneck` must be 'gaussian' as in"):
        _check_same_networks(tiny(causal_vae=discrete), saved)


def test_other_settings_may_change(tiny, saved):
    objective = replace(
        tiny().objective,
        terms={"gram": 1.0},
        adversarial_loss_weight=0.1,
        reconstruction=ReconstructionConfig(loss="l1"),
        disc_start=3,
    )
    _check_same_networks(tiny(objective=objective, seed=3, output_dir="elsewhere"), saved)


def test_a_checkpoint_of_an_earlier_version_is_refused(tiny, saved):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    settings["objective"] = {"recon_loss": "mse", "disc_train_start": 1}
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"must be .* of this version, but got .*0\.1\. Use another --output_dir"):
        _check_same_networks(tiny(), saved)


def test_a_run_with_functions_of_the_user_may_be_resumed(tiny, tmp_path):
    def of_another_package(real, fake):
        return mse(reconstruction=fake, target=real)

    of_another_package.__module__, of_another_package.__qualname__ = "other_package.losses", "mine"
    terms = {"extra": Term(lambda reconstruction, target: target.mean(), weight=0.1)}
    terms["extra"].target.__module__, terms["extra"].target.__qualname__ = "other_package.losses", "extra"
    config = tiny(objective=replace(tiny().objective, gan=GANConfig(loss=of_another_package), terms=terms))
    (tmp_path / "config.yaml").write_text(_as_yaml(config))
    _check_same_networks(config, tmp_path)


@pytest.mark.parametrize(("before", "now"), [("a", "b"), (None, "a"), ("a", None)])
def test_other_data_is_refused(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(_as_yaml(TrainConfig(data=before)))
    with pytest.raises(ValueError, match=f"`data` must be {before!r} as in .*, but got {now!r}. .*--change_data"):
        _check_same_data(now, tmp_path)


@pytest.mark.parametrize(("before", "now"), [("a", "./a/"), ("b/../a", "a"), (None, None)])
def test_the_same_data_may_be_named_in_another_way(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(_as_yaml(TrainConfig(data=before)))
    _check_same_data(now, tmp_path)


REMOVED_SETTINGS = [
    ("discriminator", "pad_mode", "first", "zero", "`discriminator.pad_mode` must be 'zero' as in .* got 'first'"),
    ("objective.adaptive_weight", "decay", 0.0, 0.9, "`objective.adaptive_weight.decay > 0` must be True as in"),
]


@pytest.mark.parametrize(("group", "name", "now", "other", "message"), REMOVED_SETTINGS)
def test_removed_settings_may_have_the_value_that_they_have_now(tiny, saved, group, name, now, other, message):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    of_group = settings
    for part in group.split("."):
        of_group = of_group[part]
    of_group[name] = now
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    _check_same_networks(tiny(), saved)
    assert changed_settings(tiny(), saved) == []
    of_group[name] = other
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        _check_same_networks(tiny(), saved)


def test_removed_settings_that_changed_nothing_else_are_named(tiny, saved):
    settings = yaml.safe_load((saved / "config.yaml").read_text())
    settings["objective"]["gan"]["lecam_decay"] = 0.99
    settings["discriminator"]["init_optimizer"] = True
    (saved / "config.yaml").write_text(yaml.safe_dump(settings))
    _check_same_networks(tiny(), saved)
    changes = ["objective.gan.lecam_decay 0.99 -> 0.999", "discriminator.init_optimizer true -> false"]
    assert sorted(changed_settings(tiny(), saved)) == sorted(changes)
