"""A dry run computes an update with every term on, and keeps nothing."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from telecine.__main__ import main
from telecine.objective.weights import WeightSchedule
from telecine.runs.lock import RunLock
from telecine.runs.saved_settings import as_yaml
from telecine.training import Interrupted
from telecine.training.clips import read_next
from telecine.training.run import DryRunResult, dry_run

from .helpers import LIGHT, recorder


def files_below(folder):
    return sorted(folder.rglob("*"))


def test_the_update_has_every_term_and_nothing_is_kept(
    tiny, tmp_path, tmp_path_factory, everything, monkeypatch
):
    # PyTorch makes the folder of its compiler's cache in that of temporary files when a process first needs it.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = tiny(**everything, trackers=("tensorboard",), push_to_hub=True)
    checkpoint = (
        Path(config.output_dir) / "checkpoints" / "step-00000001"
    )  # a run would set it aside as damaged
    checkpoint.mkdir(parents=True)
    before = files_below(tmp_path)
    console = recorder()
    result = dry_run(config, console=console)
    assert files_below(tmp_path) == before
    assert result.step == 2, "one term ends at step 3, and the penalty is on"
    assert (result.off, result.num_steps) == (
        WeightSchedule(config.objective).off_at(2),
        config.steps,
    )
    assert result.seconds > 0
    assert result.peak_memory > 100 * 2**20, "of the process, which has imported PyTorch"
    terms = {
        "train/gram_loss",
        "train/gen_loss",
        "train/grad_penalty_loss",
        "train/total_disc_loss",
    }
    assert terms <= result.values.keys()
    assert "held-out" in console.export_text(), "it validates, as a run does"


def test_it_prints_whether_every_term_is_on():
    console = recorder()
    values = {"train/recon_loss": 0.1}
    DryRunResult(2, 1.0, None, values, off=["adversarial_loss_weight"], num_steps=3).print_to(
        console
    )
    assert "not on in this update: adversarial_loss_weight" in console.export_text()
    DryRunResult(5, 1.0, None, values, off=[], num_steps=9).print_to(console)
    text = console.export_text()
    assert "every term is on in this update" in text
    assert "9 such updates take 9 s;" in text


def test_a_short_run_is_tried_at_its_last_step(tiny):
    assert dry_run(tiny(steps=2)).step == 1


def test_an_output_folder_that_cannot_be_used_is_found(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`output_dir` must be a folder that can be made"):
        dry_run(tiny(output_dir=str(tmp_path / "file" / "run")))


def test_only_the_first_process_takes_the_lock(tiny, monkeypatch):
    """Under `torchrun`, another process would refuse the lock that the first one holds for a moment."""
    config = tiny()

    class ReachedError(Exception):
        pass

    def stop(*_):
        raise ReachedError

    lock = RunLock(Path(config.output_dir)).acquire()
    with pytest.raises(ValueError, match="used by one run at a time"):
        dry_run(config)
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    monkeypatch.setattr("telecine.training.run.prepare", stop)
    with pytest.raises(ReachedError):
        dry_run(config)
    lock.release()


def test_it_stops_if_another_process_cannot_read_its_clips(tiny, monkeypatch):
    """An update of this process would wait for that of the other one."""
    read = []

    def read_and_note(batches):
        read.append(read_next(batches))
        return read[-1]

    monkeypatch.setattr("telecine.training.run.read_next", read_and_note)
    monkeypatch.setattr("telecine.training.run.validate", lambda *_: None)
    monkeypatch.setattr("telecine.training.run.any_rank", lambda *_: bool(read), raising=False)
    with pytest.raises(Interrupted):
        dry_run(tiny(**LIGHT))
    assert len(read) == 1


@pytest.mark.slow
def test_the_command(tiny, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(as_yaml(tiny()))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "an update of step 2" in out
    assert "memory at the peak" in out
    assert "total_loss" in out
    assert not (tmp_path / "run").exists()
