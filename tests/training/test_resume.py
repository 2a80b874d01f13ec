"""Which settings may change when a run resumes."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import yaml
from torch import nn

from telecine import Ramp, Term, VideoAutoencoderLoss
from telecine.losses import mse
from telecine.runs.saved_settings import as_yaml, plain_settings
from telecine.runs.summary import RunSummary, ValidationSet
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DistillConfig,
    GANConfig,
    ObjectiveConfig,
    ReconstructionConfig,
    TrainConfig,
)
from telecine.settings.autoencoder import FlowConfig
from telecine.settings.distill import ResolvedStudent
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS
from telecine.training.resume import SavedSettings, frozen_digests


@pytest.fixture
def saved(tiny, tmp_path):
    """Return the folder of a checkpoint of the tiny run that holds its settings only."""
    (tmp_path / "config.yaml").write_text(as_yaml(tiny()))
    return tmp_path


CHANGED_NETWORKS = [
    (
        lambda c: {"causal_vae": replace(c.causal_vae, base_channels=16)},
        "`causal_vae.base_channels` must be 8 as in",
    ),
    (
        lambda c: {"discriminator": replace(c.discriminator, dim=4)},
        "`discriminator.dim` must be 2 as in",
    ),
    (
        lambda c: {"trainable": replace(c.trainable, weights="decoder")},
        "`trainable.weights` must be 'all' as in",
    ),
    (
        lambda c: {"model": "a/model", "causal_vae": replace(c.causal_vae, base_channels=16)},
        "`model` must be 'left out' as in .* but got 'given'",
    ),
    (lambda c: {"model": "a/model"}, "`model` must be 'left out' as in .* but got 'given'"),
    (lambda c: {"clips": replace(c.clips, num_frames=9)}, "`clips.num_frames` must be 5 as in"),
    (lambda c: {"clips": replace(c.clips, height=48)}, "`clips.height` must be 32 as in"),
    (lambda c: {"clips": replace(c.clips, width=48)}, "`clips.width` must be 32 as in"),
    (
        lambda c: {"objective": replace(c.objective, adversarial_loss_weight=0.0)},
        "`objective.adversarial_loss_weight` must be 'above 0' as in .* but got '0'",
    ),
    (
        lambda c: {
            "objective": replace(
                c.objective, reconstruction=ReconstructionConfig(learn_logvar=True)
            )
        },
        "`objective.reconstruction.learn_logvar` must be False as in",
    ),
    (
        lambda c: {
            "objective": replace(c.objective, gan=GANConfig(lecam_loss_weight=Ramp(0.1, start=100)))
        },
        "`objective.gan.lecam_loss_weight` must be '0' as in .* but got 'above 0'",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGED_NETWORKS)
def test_settings_that_change_the_networks_are_refused(tiny, saved, change, message):
    SavedSettings(saved).check_networks(tiny())
    with pytest.raises(ValueError, match=message):
        SavedSettings(saved).check_networks(replace(tiny(), **change(tiny())))


def change_saved(folder, name, value):
    """Change a setting of the checkpoint, or remove it if `value` is None."""
    path = folder / "config.yaml"
    settings = group = yaml.safe_load(path.read_text())
    *parents, last = name.split(".")
    for parent in parents:
        group = group[parent]
    group[last] = value
    if value is None:
        del group[last]
    path.write_text(yaml.safe_dump(settings))


def test_settings_that_an_older_version_did_not_have_had_their_defaults(tiny, saved):
    change_saved(saved, "causal_vae.bottleneck", None)
    change_saved(saved, "clips.bit_depth", None)
    SavedSettings(saved).check_networks(tiny())
    assert SavedSettings(saved).changes(tiny()) == []
    discrete = tiny(causal_vae=replace(tiny().causal_vae, bottleneck="fsq"))
    assert SavedSettings(saved).changes(discrete) == ["causal_vae.bottleneck gaussian -> fsq"]
    with pytest.raises(ValueError, match=r"`causal_vae.bottleneck` must be 'gaussian' as in"):
        SavedSettings(saved).check_networks(discrete)


def test_a_checkpoint_of_an_earlier_version_is_refused(tiny, saved):
    change_saved(saved, "objective", {"recon_loss": "mse", "disc_train_start": 1})
    message = r"must be .* of this version, but got .* an older version\. Use another --output_dir"
    with pytest.raises(ValueError, match=message):
        SavedSettings(saved).check_networks(tiny())


def test_a_run_with_functions_of_the_user_may_be_resumed(tiny, tmp_path):
    def of_another_package(real, fake):
        return mse(reconstruction=fake, target=real)

    of_another_package.__module__ = "other_package.losses"
    of_another_package.__qualname__ = "mine"
    terms = {"extra": Term(lambda reconstruction, target: target.mean(), weight=0.1)}
    terms["extra"].target.__module__ = "other_package.losses"
    terms["extra"].target.__qualname__ = "extra"
    config = tiny(
        objective=replace(tiny().objective, gan=GANConfig(loss=of_another_package), terms=terms)
    )
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    SavedSettings(tmp_path).check_networks(config)


@pytest.mark.parametrize(
    ("before", "now"), [("a", "b"), (None, "a"), ("a", None), (["a", "b"], ("a", "c"))]
)
def test_other_data_is_refused(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data=before)))
    message = rf"`data` must be {re.escape(repr(before))} as in .*, but got {re.escape(repr(now))}\. .*--change_data"
    with pytest.raises(ValueError, match=message):
        SavedSettings(tmp_path).check_clips(TrainConfig(data=now), None, DATA)


def test_another_model_in_an_old_folder_is_not_blamed_on_the_data(tmp_path):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data="a", model="wan")))
    message = (
        "`output_dir` must be a new folder, or one of a run of ltx, but got .*, of a run of wan"
    )
    with pytest.raises(ValueError, match=message):
        SavedSettings(tmp_path).check_clips(TrainConfig(data="b", model="ltx"), None, DATA)


@pytest.mark.parametrize(
    ("before", "now"), [(["a", "b"], ("./a/", "b")), ("a", "./a/"), ("b/../a", "a"), (None, None)]
)
def test_the_same_data_may_be_named_in_another_way(tmp_path, before, now):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data=before)))
    assert SavedSettings(tmp_path).check_clips(TrainConfig(data=now), None, DATA) == []


CLIPS_BEFORE = ValidationSet(2, 5, 16, 24, "ab")
SUMMARY = RunSummary(
    9, 7, 3, 12, 1, 400, 4, CLIPS_BEFORE, 5.0, None, data_sha256="cd", content_sha256="ij"
)
DATA = {
    "num_videos": 12,
    "num_images": 0,
    "num_skipped": 1,
    "num_frames": 400,
    "validation": CLIPS_BEFORE,
}
DATA |= {"data_sha256": "", "content_sha256": "ij"}


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ({"data_sha256": "cd"}, []),
        (
            {"num_videos": 11, "num_frames": 380, "data_sha256": "ef"},
            ["videos 12 -> 11", "frames 400 -> 380"],
        ),
        ({"num_skipped": 2, "data_sha256": "ef"}, ["skipped files 1 -> 2"]),
        ({"data_sha256": "ef"}, ["files of other sizes, names or frames"]),
        (
            {"data_sha256": "cd", "content_sha256": "gh"},
            ["files of the same sizes with other content"],
        ),
    ],
)
def test_changes_of_the_data_are_named_and_other_held_out_clips_refused(tmp_path, data, changes):
    config = TrainConfig(data="a")
    data = DATA | data
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert SavedSettings(tmp_path).check_clips(config, SUMMARY, data) == changes
    data["validation"] = replace(CLIPS_BEFORE, sha256="ba")
    named = ", ".join(changes) or "files of the same sizes"
    with pytest.raises(
        ValueError,
        match=rf"`data` must be that of .*, but got other held-out clips \({named}\)\. .*--change_data",
    ):
        SavedSettings(tmp_path).check_clips(config, SUMMARY, data)
    others = {"val_fraction": 0.3}, {"range": (0.0, 1.0)}, {"layout": "T C H W"}, {"bit_depth": 16}
    chosen = [replace(config, clips=replace(config.clips, **change)) for change in others]
    for other in (replace(config, val_clips=3), *chosen):
        assert SavedSettings(tmp_path).check_clips(other, SUMMARY, data) == changes, (
            "the user has chosen other clips"
        )


def test_the_same_files_may_be_in_another_place(tmp_path):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data="a")))
    moved = TrainConfig(data="b")
    assert SavedSettings(tmp_path).check_clips(moved, SUMMARY, DATA | {"data_sha256": "cd"}) == []
    others = replace(
        SUMMARY, validation=replace(CLIPS_BEFORE, sha256="ba")
    )  # arrays of the same names and sizes
    other_content = replace(SUMMARY, content_sha256="gh")
    for before, now in (
        (SUMMARY, "ef"),
        (other_content, "cd"),
        (replace(SUMMARY, data_sha256=""), "cd"),
        (None, "cd"),
        (others, "cd"),
    ):
        with pytest.raises(
            ValueError, match=r"`data` must be 'a' as in .*, but got 'b'\. .*--change_data"
        ):
            SavedSettings(tmp_path).check_clips(moved, before, DATA | {"data_sha256": now})
    with pytest.raises(
        ValueError, match="`data` must be 'a' as in"
    ):  # whose pixels nothing tells apart
        SavedSettings(tmp_path).check_clips(
            replace(moved, val_data="v"), SUMMARY, DATA | {"data_sha256": "cd"}
        )


def test_data_that_was_left_out_is_known_before_any_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(data="a")))
    SavedSettings(tmp_path).check_data(TrainConfig(data="b"), may_be_same=True)
    with pytest.raises(ValueError, match=r"`data` must be 'a' as in .*, but got None"):
        SavedSettings(tmp_path).check_data(TrainConfig(), may_be_same=True)


def test_a_summary_without_a_hash_of_the_data_tells_less(tmp_path):
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig()))
    old = replace(SUMMARY, data_sha256="", content_sha256="")
    assert (
        SavedSettings(tmp_path).check_clips(TrainConfig(), old, DATA | {"data_sha256": "ef"}) == []
    )


REMOVED_SETTINGS = [
    (
        "discriminator.pad_mode",
        "first",
        "zero",
        "`discriminator.pad_mode` must be 'zero' as in .* got 'first'",
    ),
    (
        "discriminator.conditional",
        False,
        True,
        "`discriminator.conditional` must be True as in .* got False",
    ),
]


@pytest.mark.parametrize(("name", "now", "other", "message"), REMOVED_SETTINGS)
def test_removed_settings_may_have_the_value_that_they_have_now(
    tiny, saved, name, now, other, message
):
    change_saved(saved, name, now)
    SavedSettings(saved).check_networks(tiny())
    assert SavedSettings(saved).changes(tiny()) == []
    change_saved(saved, name, other)
    with pytest.raises(ValueError, match=message):
        SavedSettings(saved).check_networks(tiny())


def test_removed_settings_that_changed_nothing_else_are_named(tiny, saved):
    change_saved(saved, "objective.gan.lecam_decay", 0.99)
    change_saved(saved, "discriminator.init_optimizer", True)
    SavedSettings(saved).check_networks(tiny())
    assert SavedSettings(saved).changes(tiny()) == ["objective.gan.lecam_decay 0.99 -> 0.999"]


def test_a_resumed_pruned_model_of_an_older_version_has_no_changes(tmp_path):
    """Such a version saved neither the `student` beside it nor the encoder of a teacher that is a student."""
    of_run = {"model": "/run", "teacher": "/run", "student": "/pruned"}
    saved = plain_settings(DistillConfig()) | of_run
    del saved["resolved"]
    (tmp_path / "config.yaml").write_text(as_yaml(saved))
    resolved = ResolvedStudent(encoder="/wan", pruned_model="/pruned")
    now = DistillConfig(model="/run", teacher="/run", student="student.yaml", resolved=resolved)
    clips = SavedSettings(tmp_path).as_started(now)[0].clips
    assert SavedSettings(tmp_path).changes(replace(now, clips=clips)) == []
    other = replace(now, clips=clips, resolved=replace(resolved, pruned_model="/other"))
    changes = SavedSettings(tmp_path).changes(other)
    assert changes == ["resolved.pruned_model /pruned -> /other"]
    (tmp_path / "config.yaml").write_text(as_yaml(now))
    changes = SavedSettings(tmp_path).changes(replace(now, student="tiny"))
    assert changes == ["student student.yaml -> tiny"]


def test_a_run_that_keeps_its_earlier_hold_out_is_not_indexed_lazily(tmp_path):
    """Its hold-out cannot change: the remedy is the index alone."""
    settings = plain_settings(TrainConfig(clips=ClipConfig(holdout="earlier")))
    (tmp_path / "config.yaml").write_text(as_yaml(settings))
    message = r"`clips\.index` must be ahead .* got 'lazy'.*\. Set `clips\.index` to `ahead`\.$"
    with pytest.raises(ValueError, match=message):
        SavedSettings(tmp_path).as_started(TrainConfig(clips=ClipConfig(index="lazy")))


@pytest.mark.parametrize("decoder", ["direct", "flow"])
def test_a_run_with_the_levels_of_an_older_version_keeps_them(tmp_path, decoder):
    """The same command resumes it, although its defaults have changed."""
    config = TrainConfig(causal_vae=CausalVAEConfig(decoder=decoder))
    settings = plain_settings(config)
    settings["causal_vae"]["flow"]["shift"] = 1.0
    del settings["causal_vae"]["flow"]["noise_fraction"]
    (tmp_path / "config.yaml").write_text(as_yaml(settings))
    saved = SavedSettings(tmp_path)
    resumed, warnings, notes = saved.as_started(config)
    assert warnings == []
    expected = []
    if decoder == "flow":
        expected = [
            "`causal_vae.flow.shift` stays 1.0, as the run started",
            "`causal_vae.flow.noise_fraction` stays 0.0, as the run started",
        ]
    assert notes == expected
    assert (resumed.causal_vae.flow.shift, resumed.causal_vae.flow.noise_fraction) == (1.0, 0.0)
    saved.check_networks(resumed)
    assert saved.changes(resumed) == []
    other = CausalVAEConfig(decoder=decoder, flow=FlowConfig(shift=2.0))
    with pytest.raises(ValueError, match=r"`causal_vae\.flow\.shift` must be 1\.0 as in"):
        saved.check_networks(saved.as_started(TrainConfig(causal_vae=other))[0])


def test_levels_that_were_typed_for_a_run_are_not_replaced(tmp_path):
    """As for every other setting of the networks, another value is refused, also if it is the default."""
    started = TrainConfig(
        causal_vae=CausalVAEConfig(decoder="flow", flow=FlowConfig(level_mean=0.5))
    )
    (tmp_path / "config.yaml").write_text(as_yaml(plain_settings(started)))
    saved = SavedSettings(tmp_path)
    now = TrainConfig(causal_vae=CausalVAEConfig(decoder="flow", flow=FlowConfig(level_mean=0.0)))
    resumed, _, notes = saved.as_started(now)
    assert notes == []
    assert resumed.causal_vae.flow.level_mean == 0.0
    with pytest.raises(ValueError, match=r"`causal_vae\.flow\.level_mean` must be 0\.5 as in"):
        saved.check_networks(resumed)


def test_levels_of_an_older_version_are_kept_each_time_the_run_resumes(tmp_path):
    """A checkpoint that this version has written of the run has all settings."""
    config = TrainConfig(causal_vae=CausalVAEConfig(decoder="flow"))
    settings = plain_settings(config)
    settings["causal_vae"]["flow"]["shift"] = 1.0
    del settings["causal_vae"]["flow"]["noise_fraction"]
    for name in DEFAULTS_OF_OLD_RUNS:
        del settings["clips"][name]
    (tmp_path / "config.yaml").write_text(as_yaml(settings))
    resumed, _, _ = SavedSettings(tmp_path).as_started(config)
    written = plain_settings(resumed)
    before_a_setting = deepcopy(written)
    del before_a_setting["clips"]["file_identity"]
    for saved_settings in (written, before_a_setting):
        (tmp_path / "config.yaml").write_text(as_yaml(saved_settings))
        saved = SavedSettings(tmp_path)
        again, _, _ = saved.as_started(config)
        assert again == resumed
        assert again.causal_vae.flow == FlowConfig(shift=1, noise_fraction=0)
        saved.check_networks(again)


@pytest.mark.parametrize(("name", "value"), [("shift", 1.0), ("noise_fraction", 0.0)])
def test_a_default_of_an_older_version_that_this_one_saved_is_not_kept(tmp_path, name, value):
    """It was typed, so that another value is refused, as for every other setting of the networks."""
    flow = FlowConfig(**{name: value})
    started = TrainConfig(causal_vae=CausalVAEConfig(decoder="flow", flow=flow))
    (tmp_path / "config.yaml").write_text(as_yaml(started))
    saved = SavedSettings(tmp_path)
    saved.check_networks(saved.as_started(started)[0])
    now = TrainConfig(causal_vae=CausalVAEConfig(decoder="flow"))
    resumed, _, notes = saved.as_started(now)
    assert notes == []
    with pytest.raises(ValueError, match=rf"`causal_vae\.flow\.{name}` must be {value} as in"):
        saved.check_networks(resumed)


class Coarse(nn.Conv2d):
    """Features of frames."""

    def __init__(self):
        super().__init__(3, 4, 8, 8)


class Fine(nn.Conv2d):
    """Other features of frames."""

    def __init__(self):
        super().__init__(3, 4, 4, 4)


def aligned_with(net):
    """Return settings with a term that a network belongs to."""
    params = {"latent_channels": 4, "net": f"{__name__}.{net.__name__}"}
    terms = {"alignment": Term(weight=0.5, params=params)}
    return TrainConfig(data="a", objective=ObjectiveConfig(perceptual_weight=0, terms=terms))


def digests_of(config):
    """Return the digests of the frozen networks of an objective."""
    return frozen_digests({"objective": VideoAutoencoderLoss(**config.objective.arguments())})


def test_a_term_may_get_another_network_on_purpose(tmp_path, monkeypatch):
    """Its settings say so. With the settings of before, other weights are an error."""
    monkeypatch.setattr("telecine.base.imports.allowed_packages", {"telecine", __name__})
    before = aligned_with(Coarse)
    (tmp_path / "config.yaml").write_text(as_yaml(before))
    saved = SavedSettings(tmp_path)
    summary = replace(SUMMARY, networks=digests_of(before))
    now = aligned_with(Fine)
    saved.check_frozen_networks(now, summary, digests_of(now))
    with pytest.raises(ValueError, match=r"other weights of objective\.term_modules\.align"):
        saved.check_frozen_networks(before, summary, digests_of(now))
