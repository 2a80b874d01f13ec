"""Settings of runs: how they are written, read, and compared."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from telecine import Term
from telecine.losses import SeparableGANLoss, mse
from telecine.losses.adversarial import hinge, relativistic, vanilla
from telecine.losses.penalty import Penalty, r1
from telecine.runs.saved_settings import (
    as_yaml,
    flat_settings,
    read_saved_settings,
    side_by_side_settings,
    write_settings,
)
from telecine.settings import GANConfig, ObjectiveConfig, PenaltyConfig, TrainConfig
from telecine.settings.parse import read_config
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS
from telecine.training import train


class TestSettings:
    def test_are_read_as_text_by_their_dotted_names(self, tmp_path):
        (tmp_path / "config.yaml").write_text(
            "data: null\nclips:\n  height: 64\n  cache: true\nlevels: [1, 2]\ndate: 2024-01-31\n"
        )
        expected = {"data": "null", "clips.height": "64", "clips.cache": "true", "levels": "[1, 2]"}
        expected |= {
            "date": "2024-01-31",
            **{f"clips.{name}": value for name, value in DEFAULTS_OF_OLD_RUNS.items()},
        }
        assert flat_settings(read_saved_settings(tmp_path)) == expected

    def test_differences_are_marked(self):
        rows = side_by_side_settings([{"a": "1", "b": "2"}, {"b": "3", "a": "1", "c": "4"}])
        assert [(row.name, row.values, row.differs) for row in rows] == [
            ("a", ["1", "1"], False),
            ("b", ["2", "3"], True),
            ("c", ["not set", "4"], True),
        ]

    def test_a_run_without_the_file_has_none(self, tmp_path):
        assert read_saved_settings(tmp_path) == {}

    @pytest.mark.parametrize(
        ("text", "contract"),
        [("a: [", "YAML in UTF-8"), ("- 1", "`key: value` lines"), ("", "a YAML mapping")],
    )
    def test_a_damaged_file_raises(self, tmp_path, text, contract):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"config.yaml` must be {contract}, but got"):
            read_saved_settings(tmp_path)


# What versions without `resolved` have saved of a distillation, and what this version reads: of a decoder, of one for a
# teacher that is a student, of an autoencoder, and of a pruned model of telecine and of diffusers.
DISTILLATIONS = [
    (
        "model: /wan\nteacher: /wan\nstudent: tiny\ntrain_encoder: false",
        {"model": "/wan", "teacher": "/wan", "student": "tiny"},
        {"encoder": "/wan", "pruned_model": None},
    ),
    (
        "model: /run\nteacher: /wan\nstudent: /student.yaml\ntrain_encoder: false",
        {"model": "/run", "teacher": "/run", "student": "/student.yaml"},
        {"encoder": "/wan", "pruned_model": None},
    ),
    (
        "model: null\nteacher: /wan\nstudent: small\ntrain_encoder: true",
        {"model": None, "teacher": "/wan", "student": "small"},
        None,
    ),
    (
        "model: /run\nteacher: /run\nstudent: /pruned\ntrain_encoder: false",
        {"model": "/run", "teacher": "/run", "student": "small"},
        {"encoder": "/run", "pruned_model": "/pruned"},
    ),
    (
        "model: /pruned\nteacher: /wan\nstudent: /pruned\ntrain_encoder: false",
        {"model": "/pruned", "teacher": "/wan", "student": "small"},
        {"encoder": "/wan", "pruned_model": "/pruned"},
    ),
]


@pytest.mark.parametrize(("text", "typed", "resolved"), DISTILLATIONS)
def test_a_distillation_of_an_older_version_is_read(tmp_path, text, typed, resolved):
    (tmp_path / "config.yaml").write_text(text)
    settings = read_saved_settings(tmp_path)
    assert settings == typed | {
        "train_encoder": text.endswith("true"),
        "resolved": resolved,
    }


def test_a_student_of_an_older_version_that_is_a_file_is_no_pruned_model(tmp_path):
    """A settings file may have any name, and a folder, too."""
    (tmp_path / "decoder").write_text("base_channels: 8\n")
    (tmp_path / "pruned.yaml").mkdir()
    for name, pruned_model in (("decoder", None), ("pruned.yaml", str(tmp_path / "pruned.yaml"))):
        settings = {"model": "/wan", "teacher": "/wan", "student": str(tmp_path / name)}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        resolved = read_saved_settings(tmp_path)["resolved"]
        assert resolved == {"encoder": "/wan", "pruned_model": pruned_model}


def test_settings_that_cannot_be_written_keep_the_old_ones(tmp_path, monkeypatch):
    write_bytes = Path.write_bytes

    def write_half(path, content):
        write_bytes(path, content[:100])
        raise OSError("disk full")

    write_settings(tmp_path, TrainConfig())
    before = read_saved_settings(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="disk full"):
        write_settings(tmp_path, TrainConfig(seed=9))
    assert read_saved_settings(tmp_path) == before
    monkeypatch.undo()
    write_settings(tmp_path, TrainConfig(seed=9))
    assert read_saved_settings(tmp_path)["seed"] == 9


def test_a_name_that_a_file_of_settings_cannot_hold_is_refused_at_once():
    name = os.fsdecode(b"caf\xe9")
    for setting in ("data", "output_dir"):
        message = rf"`{setting}` must be text in UTF-8, .* but got 'caf\\udce9'\. Rename it"
        with pytest.raises(ValueError, match=message):
            train(TrainConfig(**{setting: name}))
    assert not Path(name).exists()


def with_term(config, function):
    return replace(
        config, objective=replace(config.objective, terms={"extra": Term(function, weight=0.1)})
    )


MIXED = SeparableGANLoss(vanilla.real, vanilla.fake, hinge.generator)


@pytest.mark.parametrize(
    ("loss", "path"),
    [
        (hinge, "telecine.losses.adversarial.hinge"),
        (relativistic, "telecine.losses.adversarial.relativistic"),
        (MIXED, f"{__name__}.MIXED"),
    ],
)
def test_gan_losses_are_saved_by_the_path_that_imports_them(loss, path):
    config = TrainConfig(objective=ObjectiveConfig(gan=GANConfig(loss=loss)))
    assert yaml.safe_load(as_yaml(config))["objective"]["gan"]["loss"] == path
    unnamed = replace(loss, boundary=0.25)
    config = TrainConfig(objective=ObjectiveConfig(gan=GANConfig(loss=unnamed)))
    message = r"^`objective.gan.loss` must be a plain value or an importable function, but got"
    with pytest.raises(ValueError, match=message):
        train(config)


def test_functions_that_cannot_be_imported_are_refused():
    def of_a_script(reconstruction, target):
        return mse(reconstruction=reconstruction, target=target)

    of_a_script.__qualname__ = "of_a_script"
    as_yaml(with_term(TrainConfig(), of_a_script))
    of_a_script.__module__ = "__main__"
    for function in (
        of_a_script,
        lambda reconstruction, target: mse(reconstruction=reconstruction, target=target),
    ):
        with pytest.raises(
            ValueError, match="must be a plain value or an importable function, but got <function"
        ):
            as_yaml(with_term(TrainConfig(), function))
    penalty = ObjectiveConfig(penalty=PenaltyConfig(kind=Penalty(r1)))
    with pytest.raises(ValueError, match=r"an importable function, but got Penalty.*dotted path"):
        as_yaml(TrainConfig(objective=penalty))


@pytest.mark.parametrize(
    "text",
    ["08", "1e5", "1.5e3", "0x1f", "null", "~", "", "true", "no", ".inf", "a: b", "3", "caf\u00e9"],
)
def test_text_comes_back_as_text(tmp_path, text):
    write_settings(tmp_path, TrainConfig(tracker_project=text))
    assert read_saved_settings(tmp_path)["tracker_project"] == text
    assert read_config(tmp_path / "config.yaml").tracker_project == text
