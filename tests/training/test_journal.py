import json

import pytest
import torch
from accelerate import Accelerator

from telecine.report.records import read_records, validations
from telecine.runs import METRICS_FILE
from telecine.training.journal import Journal, best_validation


@pytest.fixture
def journal(tmp_path):
    def open_at(step):
        accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
        accelerator.init_trackers("tensorboard")
        return Journal(tmp_path, accelerator, step=step)

    return open_at


def test_means_are_over_the_interval(journal, tmp_path):
    book = journal(0)
    for value in (1.0, 2.0, 6.0):
        book.collect({"loss": value})
    book.collect({"rare": 5.0})
    book.write_means(4, lr=0.1)
    book.collect({"loss": 10.0})
    book.write_means(5)
    assert read_records(tmp_path / METRICS_FILE) == [
        {"step": 4, "loss": 3.0, "rare": 5.0, "lr": 0.1},
        {"step": 5, "loss": 10.0},
    ]


def test_an_interval_that_was_interrupted_goes_on(journal, tmp_path):
    book = journal(0)
    book.collect({"loss": 1.0})
    book.collect({"loss": 2.0, "rare": 3.0})
    saved = json.loads(json.dumps(book.interval))
    book.collect({"loss": 100.0})  # after the checkpoint
    again = Journal(tmp_path, book.accelerator, step=2, interval=saved)
    again.collect({"loss": 6.0})
    assert again.write_means(3) == {"loss": 3.0, "rare": 3.0}
    assert again.interval == {}


def test_what_came_after_the_checkpoint_is_dropped(journal, tmp_path):
    book = journal(0)
    for step in (1, 2, 3, 4):
        book.write(step, {"val/psnr": float(step)})
    journal(2)
    assert [record["step"] for record in read_records(tmp_path / METRICS_FILE)] == [1, 2]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "los')
    assert read_records(path) == [{"step": 1}]


def test_validations_are_told_by_their_psnr():
    records = [{"step": 0, "val/psnr": 1.0}, {"step": 1, "train/x": 2.0}]
    assert validations(records) == [records[0]]


def test_tensorboard_gets_scalars_and_a_moving_picture(journal, tmp_path, with_pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    book = journal(0)
    book.write(3, {"train/total_loss": 0.5})
    book.preview(3, torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8), 25.0)
    book.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/total_loss")] == [(3, 0.5)]
    (image,) = events.Images("val/side_by_side")
    assert image.encoded_image_string.startswith(b"GIF8")
    assert (image.width, image.height) == (16, 16)


@pytest.mark.parametrize(("metric", "best"), [("psnr", 2), ("lpips_alex", 3)])
def test_a_validation_that_is_not_finite_is_not_the_best(metric, best):
    figures = [(0, 50.0, 0.0), (1, float("nan"), float("nan")), (2, 30.0, 0.4), (3, 20.0, 0.3), (4, float("inf"), -0.0)]
    records = [{"step": step, "val/psnr": psnr, "val/lpips_alex": lpips} for step, psnr, lpips in figures]
    records[-1]["val/lpips_alex"] = float("-inf")
    assert best_validation(records, metric)["step"] == best
    assert best_validation(records[:2], metric) is None
