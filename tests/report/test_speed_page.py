"""The page about the speed of models, in a browser."""

from telecine.evaluation.compare_speed import ComparedSpeeds
from telecine.evaluation.result import SavedEvaluation
from telecine.evaluation.speed import PartSpeed, Speed
from telecine.report.speed_page import render_speeds

from .browser import open_page

PROTOCOL = {
    "num_clips": 1,
    "num_frames": 5,
    "height": 16,
    "width": 16,
    "metrics": {"psnr": "", "lpips_alex": "", "sharpness": ""},
    "better": {"psnr": "larger", "lpips_alex": "smaller", "sharpness": "nearest to 1"},
}


def test_quality_over_time_with_its_pareto_front(context, tmp_path):
    """Of four models, the third is slower and worse than the second."""
    evaluations = []
    speeds = []
    for frames_per_second, psnr in ((1000.0, 20.0), (100.0, 25.0), (50.0, 24.0), (10.0, 30.0)):
        metrics = {"psnr": psnr, "lpips_alex": 1 / psnr, "sharpness": 0.9}
        evaluations.append(SavedEvaluation(PROTOCOL, metrics, []))
        part = PartSpeed(frames_per_second, 1.0, 2000.0, [1.0], memory=1, flops=1, weights=1)
        speeds.append(Speed(part, part))
    titles = ["fast", "<b>half", "beaten", "teacher"]
    page = tmp_path / "speed.html"
    compared = ComparedSpeeds(speeds, {"device": "a test"})
    page.write_text(render_speeds(titles, evaluations, compared), encoding="utf-8")
    opened = open_page(context, page)
    opened.page.wait_for_selector("#charts .plot .scatterlayer")
    front, *points = opened.page.evaluate("document.querySelector('#charts .plot').data")
    assert front["x"] == [1.0, 10.0, 100.0, 100.0]
    assert front["y"] == [20.0, 25.0, 30.0, 30.0]
    assert front["line"]["shape"] == "hv"
    assert [point["name"] for point in points] == [
        "PSNR, fast",
        "PSNR, &lt;b&gt;half",
        "PSNR, beaten",
        "PSNR, teacher",
    ]
    axis = opened.page.evaluate("document.querySelector('#charts .plot').layout.xaxis")
    assert axis["type"] == "log"
    assert -1 < axis["range"][0] < 0 < 2 < axis["range"][1] < 3, "in powers of ten"
    assert opened.page.locator("figure.chart").count() == 2, "sharpness has no front"
    assert opened.messages == []
    opened.page.close()
