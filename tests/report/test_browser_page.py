"""Charts, tables, themes and accessibility of the page in a real browser."""

import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("playwright.sync_api")

from PIL import Image

from telecine.evaluation.compare_speed import ComparedSpeeds
from telecine.evaluation.result import SavedEvaluation
from telecine.evaluation.speed import PartSpeed, Speed
from telecine.report.chart_data import Chart, Curve, Series, XAxis, charts_data, make_curve
from telecine.report.clips import ReconstructedClip, write_clips
from telecine.report.html import render_page
from telecine.report.page import write_report
from telecine.report.speed_page import render_speeds
from telecine.runs import Run

from .browser import chart, checked_page, drawn, evaluate, share_plotly, wait_for_frame
from .runs import FPS, few_records, records, stamped, write_run, write_stamped_clip

pytestmark = pytest.mark.slow
TAG = "<b>x</b>"
PROTOCOL = {
    "num_clips": 1,
    "num_frames": 5,
    "height": 16,
    "width": 16,
    "metrics": {"psnr": "", "lpips_alex": "", "sharpness": ""},
    "better": {"psnr": "larger", "lpips_alex": "smaller", "sharpness": "nearest to 1"},
}
LOGITS = "discriminator: logits"


def zoom(page, title, first, last):
    """Zoom a chart as dragging over it does."""
    relayout = "(plot, ends) => Plotly.relayout(plot, { 'xaxis.range[0]': ends[0], 'xaxis.range[1]': ends[1] })"
    chart(page, title).locator(".plot").evaluate(relayout, [first, last])


def test_it_opens_from_a_file_without_network_or_messages(opened, page, report):
    assert page.title() == "first, second: telecine report"
    for figure in page.locator("#charts figure").all():
        figure.scroll_into_view_if_needed()
    page.locator("#charts figure").last.locator(".main-svg").first.wait_for(state="attached")
    assert page.locator("#charts .js-plotly-plot").count() == 5
    assert opened.messages == []
    folder = report.parent.as_uri()
    assert len(opened.requests) > 2
    assert [url for url in opened.requests if not url.startswith((folder, "data:", "blob:"))] == []


def test_clips_are_sorted_and_the_best_and_worst_are_linked(page):
    page.locator("#clip-table").get_by_role("button", name="PSNR").first.click()
    titles = page.locator("#clip-table tbody th").all_inner_texts()
    assert titles == ["clip 2.mp4, frame 20", "clip 1.mp4, frame 10", "clip 0.mp4, frame 0"]
    page.locator("#best-and-worst").get_by_role("button", name="worst PSNR").click()
    assert page.inner_text("#clip-title") == "clip 2.mp4, frame 20"
    assert page.inner_text("#clip-table tr[aria-current] th") == "clip 2.mp4, frame 20"
    page.focus("#step-0")
    page.keyboard.press("Home")
    assert page.get_attribute("#step-0", "aria-valuetext") == "step 0"
    assert page.inner_text("#clip-title") == "clip 2.mp4, frame 20", (
        "the same clip of the first validation"
    )
    page.locator("#clip-table").get_by_role("button", name="Clip", exact=True).click()


def test_smoothing_and_scale_change_the_curves(page):
    before = drawn(page, LOGITS)
    assert before["names"][0] == "mean logit, real, first, smoothed"
    page.locator("#smoothing").fill("0.95")
    assert page.inner_text("#smoothing-value") == "0.95"
    assert drawn(page, LOGITS)["values"] != before["values"]
    page.locator("#smoothing").fill("0")
    logged = [line["train/logits_real"] for line in few_records(80) if "train/logits_real" in line]
    plain = drawn(page, LOGITS)
    assert plain["names"][0] == "mean logit, real, first"
    assert plain["values"][0] == pytest.approx(logged, rel=1e-5)
    for choice, kind in (("Log", "log"), ("Linear", "linear"), ("Auto", "linear")):
        page.get_by_label(choice, exact=True).check()
        assert drawn(page, LOGITS)["y"]["type"] == kind
    page.locator("#smoothing").fill("0.6")
    assert drawn(page, LOGITS) == before


def test_curves_and_runs_can_be_hidden(page):
    assert len(drawn(page, LOGITS)["names"]) == 4
    curve = chart(page, LOGITS).get_by_role("button", name="mean logit, real")
    run = page.locator("#run-legend").get_by_role("button", name="second")
    curve.click()
    assert drawn(page, LOGITS)["names"] == [
        f"mean logit, reconstruction, {name}, smoothed" for name in ("first", "second")
    ]
    run.click()
    assert drawn(page, LOGITS)["names"] == ["mean logit, reconstruction, first, smoothed"]
    assert run.get_attribute("aria-pressed") == "false"
    curve.click()
    run.click()
    shown = drawn(page, LOGITS)
    assert len({*zip(shown["dashes"], shown["colours"], strict=True)}) == 4


def test_the_pointer_reads_values_and_drags_zoom_all_charts(page):
    plot = chart(page, "SSIM").locator(".nsewdrag")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    texts = chart(page, "SSIM").locator(".hoverlayer")
    texts.get_by_text("SSIM, held out, second").wait_for()
    assert "SSIM, held out, first : 0.25" in texts.text_content()
    whole = drawn(page, "SSIM")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 60, steps=4)
    page.mouse.up()
    page.locator("#whole-range").wait_for()
    zoomed = drawn(page, "SSIM")
    assert zoomed["x"][0] == pytest.approx(40, abs=2)
    assert zoomed["y"]["range"][0] > whole["y"]["range"][0], "the vertical axis follows"
    assert drawn(page, LOGITS)["x"] == zoomed["x"]
    plot = chart(page, LOGITS).locator(".nsewdrag")
    plot.dblclick()
    page.locator("#whole-range").wait_for(state="hidden")
    assert drawn(page, LOGITS)["x"] == whole["x"]
    assert drawn(page, "SSIM") == whole


def luminance(colour):
    """Return the relative luminance (WCAG 2.2) of a colour as browsers compute it."""
    values = [int(value) / 255 for value in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def style(page, selector, name):
    return evaluate(page, selector, f"e => getComputedStyle(e)['{name}']")


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXTS = [
    "h1",
    ".hint",
    "nav a",
    "#clip-table tbody button",
    ".badge.best",
    ".badge.worst",
    "#frame-readout",
]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_light_and_dark_have_enough_contrast(page, theme):
    page.get_by_label(theme, exact=True).check()
    background = style(page, "body", "backgroundColor")
    surface = style(page, "#player", "backgroundColor")
    assert (luminance(background) < 0.1) == (theme == "Dark")
    for selector in TEXTS:
        assert (
            min(contrast(style(page, selector, "color"), back) for back in (background, surface))
            >= 4.5
        ), selector
    assert (
        contrast(
            style(page, "button.primary", "color"), style(page, "button.primary", "backgroundColor")
        )
        >= 4.5
    )
    chart(page, LOGITS)
    page.wait_for_timeout(200)
    assert contrast(style(page, "#charts .xtick text", "fill"), surface) >= 4.5
    assert min(contrast(colour, surface) for colour in drawn(page, LOGITS)["colours"]) >= 3
    page.get_by_label("System").check()


def test_the_default_follows_the_system(page):
    backgrounds = []
    lines = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(luminance(style(page, "body", "backgroundColor")))
        lines.append(drawn(page, LOGITS)["colours"][0])
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert style(page, "html", "scrollBehavior") == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert backgrounds[0] > 0.8
    assert backgrounds[1] < 0.05
    assert lines[0] != lines[1]


def test_each_control_has_a_name_and_a_tab_stop(page):
    controls = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, a, summary, [tabindex='0']")].map(
            (e) => e.ariaLabel || e.innerText || e.labels?.[0]?.innerText || (e.hidden && "hidden")
                || document.getElementById(e.getAttribute("aria-labelledby"))?.innerText || `none: ${e.outerHTML}`)"""
    )
    assert len(controls) > 60
    assert [name for name in controls if name.startswith("none")] == []
    roles = ["banner", "navigation", "main", "contentinfo"]
    assert [page.get_by_role(role).count() for role in roles] == [1, 1, 1, 1]
    page.focus(".skip")
    page.evaluate(
        """() => {
            window.reached = [];
            addEventListener("focusin", ({ target }) => reached.push(target.id || target.dataset.do));
        }"""
    )
    for _ in range(60):
        page.keyboard.press("Tab")
    assert {
        "run-0",
        "step-0",
        "run-1",
        "panes",
        "timeline",
        "play",
        "loop",
        "speed",
        "zoom",
        "smoothing",
    } <= {*page.evaluate("reached")}
    page.focus("#panes")
    page.keyboard.press("Tab")
    assert style(page, "#timeline", "outlineStyle") == "solid", "the focus is visible"


def test_tables_are_sorted_by_number_and_by_text(page):
    page.locator("#curves summary").click()
    table = page.locator("#curves details table")
    head = table.get_by_role("columnheader").filter(has_text="Last")
    last = table.locator("tbody tr td:nth-child(6)")
    for order, is_reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        values = [float(text) for text in last.all_inner_texts()]
        assert len({*values}) > 5
        assert values == sorted(values, reverse=is_reverse)
    table.get_by_role("button", name="Curve", exact=True).click()
    assert head.get_attribute("aria-sort") is None
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower)
    page.locator("#curves summary").click()


def test_the_values_of_a_chart_are_copied_and_its_figure_is_saved(page, tmp_path):
    page.emulate_media(color_scheme="dark")
    figure = chart(page, "SSIM")
    figure.get_by_role("button", name="CSV").click()
    figure.get_by_text("copied").wait_for()
    rows = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert rows[0] == 'step,"SSIM, held out, first","SSIM, held out, second"'
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "20", "40", "60", "80"]
    assert rows[-1] == "80,0.5,0.5"
    with page.expect_download() as download:
        figure.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == "SSIM.png"
    download.value.save_as(tmp_path / "figure.png")
    page.emulate_media(color_scheme="light")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = image.convert("RGB")
    assert pixels.width > 600
    colours = {colour for _, colour in pixels.getcolors(2**24)}
    assert {(26, 28, 31), (233, 233, 230), (111, 177, 245)} <= colours, (
        "surface, text and a curve of the dark theme"
    )


def test_a_narrow_page_shows_its_first_table_and_does_not_scroll_horizontally(page):
    page.set_viewport_size({"width": 360, "height": 740})
    opened_parts = [page.locator(f"{part} summary") for part in ("#settings", "#curves", "#keys")]
    for part in opened_parts:
        part.click()
    chart(page, LOGITS)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cells = page.locator("#summary .figures td").all()
    assert len(cells) == 8
    for cell in cells:
        box = cell.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    label = page.evaluate(
        "getComputedStyle(document.querySelectorAll('#summary td')[1], '::before').content"
    )
    assert label == '"PSNR ↑"'
    canvases = page.locator("#panes canvas")
    for compared, num_canvases in (("nothing", 3), ("second", 5)):
        page.locator("#run-1").select_option(label=compared)
        assert canvases.count() == num_canvases
        boxes = [canvas.bounding_box() for canvas in canvases.all()]
        assert len({(box["width"], box["height"]) for box in boxes}) == 1
    for part in opened_parts:
        part.click()


@pytest.fixture(scope="module")
def charts_page(context, tmp_path_factory):
    """A page of charts alone, over steps, names and numbers, of twelve models."""
    values = [make_curve(run, [(1, 25.37 + run)]) for run in range(12)]
    clips = XAxis("clip", names=("+file.mp4", '-"a", b.mp4'))
    transforms = XAxis("transform", names=["none", "flip", "<b>turn"])
    in_clips = make_curve(0, [(0, -0.5), (1, 0.25)])
    turned = make_curve(0, [(0, 0.1), (1, 0.2), (2, 0.3)])
    noisy = make_curve(0, [(0.0, 30.0), (0.2, 25.0)])
    # Together more values than a function may have arguments.
    steps = list(range(40_000))
    rising = [step / 40_000 for step in steps]
    long = [Curve(run, steps, rising, first=0.0, last=1.0) for run in (0, 1)]
    charts = [
        Chart("PSNR", [Series("PSNR, linear baseline", "linear/psnr", values)]),
        Chart("Names", [Series(name, "", [in_clips]) for name in ("=1+1", "plain")], x=clips),
        Chart("Noise", [Series("latent", "", [noisy])], x=XAxis("noise")),
        Chart(
            "Equivariance",
            [Series("latent", "", [turned])],
            x=transforms,
            explanation="What it is.",
        ),
        Chart("Long", [Series("loss", "loss", long, is_smoothed=True)]),
    ]
    names = ["@SUM(1)", *(f"run {run}" for run in range(1, 12))]
    values = {"summary": [], "probes": [], "channels": [], "protocol": []}
    path = tmp_path_factory.mktemp("charts") / "charts.html"
    data = charts_data(charts, runs=names, file="latents.json")
    definitions = {"channels": ""}
    path.write_text(
        render_page("latents.html", titles=["model"], data=data, definitions=definitions, **values)
    )
    with checked_page(context, path) as page:
        yield page


def test_the_last_values_of_many_runs_stay_in_the_legend(charts_page):
    button = charts_page.locator(".chart .legend button").first
    assert button.locator("b").count() == 12
    assert button.locator(".name").bounding_box()["height"] < 40, "not a letter a line"
    assert button.evaluate("e => e.scrollWidth - e.clientWidth") == 0


def test_a_chart_of_many_values_is_drawn(charts_page):
    plot = chart(charts_page, "Long").locator(".plot")
    ends = plot.evaluate("plot => plot.layout.yaxis.range")
    assert ends == pytest.approx([-0.05, 1.05], abs=0.01)


def test_copied_values_have_no_formula(charts_page):
    """A spreadsheet would run names of series and of clips; numbers below 0 stay numbers."""
    figure = chart(charts_page, "Names")
    figure.get_by_role("button", name="CSV").click()
    figure.get_by_text("copied").wait_for()
    copied = charts_page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines() == [
        """clip,"'=1+1, @SUM(1)","plain, @SUM(1)\"""",
        "'+file.mp4,-0.5,-0.5",
        '"\'-""a"", b.mp4",0.25,0.25',
    ]


def test_charts_over_other_axes_zoom_alone_and_named_positions_are_dots(charts_page):
    page = charts_page
    before = drawn(page, "Equivariance")
    assert before["modes"] == ["markers"]
    figure = chart(page, "Equivariance")
    assert figure.locator(".xtick text").all_text_contents() == ["none", "flip", "<b>turn"]
    assert "What it is." in figure.inner_text()
    zoom(page, "Noise", 0.1, 0.2)
    assert drawn(page, "Noise")["x"] == [0.1, 0.2]
    assert drawn(page, "Equivariance") == before
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.fixture(scope="module")
def two_unfinished(context, tmp_path_factory):
    """The page of two runs that have not reached their last step."""
    folder = tmp_path_factory.mktemp("unfinished")
    lines = records(4, every=480, val_every=480)
    for line in lines:
        if "val/ssim" in line:
            line["linear/ssim"] = 0.5
    runs = [write_run(folder / name, lines, "steps: 2400\n") for name in ("first", "second")]
    with checked_page(context, write_report(runs, folder / "report.html")) as page:
        yield page


def test_the_figures_of_two_unfinished_runs_are_seen_whole(two_unfinished):
    table = two_unfinished.locator("[aria-labelledby='summary-title']")
    assert "of 2400, measured at 1920" in table.inner_text()
    assert table.evaluate("e => e.scrollWidth - e.clientWidth") == 0


@pytest.fixture(scope="module")
def odd_values(context, tmp_path_factory):
    """The page of a run with outliers, a zero, a linear baseline, a warning, and a loss whose name is a tag."""
    lines = [
        {
            "step": step,
            "train/grad_norm": 1e6 if step == 50 else 1.0,
            "train/mse": 0.0 if step == 40 else 0.9**step,
            "train/lr": 5.0 if step == 60 else 0.1,
            f"train/{TAG}_loss": 1.0,
        }
        for step in range(101)
    ]
    for line in lines[::50]:
        line |= {f"{kind}/{name}": 0.5 for kind in ("val", "linear") for name in ("psnr", "ssim")}
    run = write_run(tmp_path_factory.mktemp("odd") / "run", lines)
    warning = {"step": 50, "rule": "rule", "message": "<i>won</i>", "remedy": "Wait."}
    (run / "health.jsonl").write_text(json.dumps(warning) + "\n")
    with checked_page(context, write_report([run])) as page:
        yield page


def test_the_linear_baseline_has_one_line_style(two_unfinished, odd_values):
    for num_runs, page in enumerate((odd_values, two_unfinished), 1):
        for title in ("PSNR (dB)", "SSIM"):
            shown = drawn(page, title)
            is_baseline = ["linear baseline" in name for name in shown["names"]]
            assert is_baseline.count(True) == num_runs
            assert [dash == "7px 3px" for dash in shown["dashes"]] == is_baseline


def test_warnings_are_marked_and_names_are_shown_as_they_are(odd_values):
    box = chart(odd_values, "all losses").locator(".nsewdrag").bounding_box()
    odd_values.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    text = chart(odd_values, "all losses").locator(".hoverlayer")
    text.get_by_text("warning : rule, <i>won</i>").wait_for()
    text.get_by_text(f"{TAG} loss").wait_for()


def test_the_vertical_axis_covers_the_values_without_outliers_of_smoothed_curves(odd_values):
    page = odd_values
    norms = drawn(page, "adaptive weight and gradient norms")["y"]
    assert norms["type"] == "log"
    assert 5 < norms["range"][1] < 6, "the smoothed spike is inside, the logged one is not"
    assert drawn(page, "all losses")["y"]["type"] == "log", "of values that differ by more than 100"
    note = "Values that are not positive are left out"
    assert note in chart(page, "all losses").inner_text()
    page.get_by_label("Linear", exact=True).check()
    assert drawn(page, "all losses")["y"]["type"] == "linear"
    assert note not in chart(page, "all losses").inner_text()
    rate = drawn(page, "learning rate")
    assert rate["names"] == ["learning rate", "warning"], "a schedule is not smoothed"
    assert rate["y"]["range"][1] > 5.0
    assert chart(page, "learning rate").locator(".legend").inner_text() == "learning rate\n0.1"


def test_a_logarithmic_axis_has_gaps_for_zeros_and_few_labels(odd_values):
    odd_values.locator("#smoothing").fill("0")
    odd_values.get_by_label("Log", exact=True).check()
    losses = drawn(odd_values, "all losses")
    assert losses["y"]["type"] == "log"
    (values,) = [values for values in losses["values"] if None in values]
    assert [step for step, value in enumerate(values) if value is None] == [40]
    assert drawn(odd_values, "learning rate")["y"]["dtick"] == "D2"


def test_missing_values_are_a_dash_and_sorted_last(context, tmp_path):
    run = write_run(tmp_path / "run", [])
    values = {"high": 30.0, "none": math.nan, "low": 20.0}
    clips = [
        ReconstructedClip(stamped(2), stamped(2), {"psnr": value}, name, 0, FPS)
        for name, value in values.items()
    ]
    clips.append(replace(clips[0], metrics={}, source="without"))
    write_clips(Run(run), 20, clips, fps=FPS)
    with checked_page(context, write_report([run])) as page:
        wait_for_frame(page, 0)
        cells = page.locator("#clip-table tbody tr td:nth-child(2)")
        assert cells.all_inner_texts() == ["30.00", "\u2013", "20.00", "\u2013"]
        for order in (["20.00", "30.00"], ["30.00", "20.00"]):
            page.click("#clip-table thead th:nth-child(2) button")
            assert cells.all_inner_texts() == [*order, "\u2013", "\u2013"]


def test_long_names_do_not_make_a_narrow_page_scroll(context, tmp_path):
    runs = [write_run(tmp_path / f"{letter * 60}_1e-4", few_records(20)) for letter in "abc"]
    for run in runs[:2]:
        write_stamped_clip(run, {"psnr": 1.0})
    (runs[2] / "metrics.jsonl").write_text("[]\n")
    with checked_page(context, write_report(runs, tmp_path / "page.html")) as page:
        page.set_viewport_size({"width": 360, "height": 700})
        page.locator("#run-0").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_run_without_videos_or_metrics_opens(context, tmp_path):
    with checked_page(context, write_report([write_run(tmp_path / "run", [])])) as page:
        page.get_by_role("main").wait_for()


def test_the_page_of_a_run_that_trains_shows_new_values_by_itself(context, tmp_path):
    run, other = (write_run(tmp_path / name, few_records(20)) for name in ("run", "other"))
    write_stamped_clip(run, {"psnr": 1.0})
    page_file = write_report([run, other], tmp_path / "page.html", is_live=True)
    with checked_page(context, page_file) as page:
        legends = (
            page.get_by_role("button", name="other", exact=True),
            page.locator("#charts .legend button").nth(1),
        )

        def shows_the_same():
            page.locator("#charts").wait_for()
            assert page.input_value("#smoothing") == "0.9"
            assert page.get_by_label("Log", exact=True).is_checked()
            assert evaluate(page, "html", "e => e.dataset.theme") == "dark"
            assert page.locator("button[aria-pressed=false]").count() == 3
            for button in (*legends, page.get_by_role("button", name="Loop")):
                assert button.get_attribute("aria-pressed") == "false"
            assert (page.input_value("#speed"), page.inner_text("#zoom")) == ("2", "1.5 \u00d7")
            assert evaluate(
                page, "#curves th[aria-sort=descending] button", "e => e === document.activeElement"
            )
            assert (
                page.locator("details[open]").count()
                == page.locator("#curves details[open]").count()
                == 1
            )
            assert drawn(page, "SSIM")["x"] == [5, 15]

        wait_for_frame(page, 0)
        page.locator("#smoothing").fill("0.9")
        page.get_by_label("Log", exact=True).check()
        for button in (*legends, page.get_by_role("button", name="Loop")):
            button.click()
        page.select_option("#speed", "2")
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_label("Dark", exact=True).check()
        zoom(page, "SSIM", 5, 15)
        page.locator("#curves summary").click()
        last = page.locator("#curves th").get_by_role("button", name="Last", exact=True)
        last.click()
        last.click()
        page.evaluate("look()")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 21, "train/lr": 0.5}\n')
        for is_live in (True, False):
            page.evaluate("() => { player.playing = true; }")  # until both files are written
            write_report([run, other], page_file, is_live=is_live)
            share_plotly(page_file)
            with page.expect_navigation():
                page.evaluate("() => { player.playing = false; look(); }")
            shows_the_same()
            assert page.locator("#summary b").first.inner_text() == "21"
        assert page.evaluate("DATA.live") is None, "the last page does not look for others"


def test_quality_over_time_with_its_pareto_front(context, tmp_path):
    """The page about the speed of models. Of four, the third is slower and worse than the second."""
    evaluations = []
    speeds = []
    for frames_per_second, psnr in ((1000.0, 20.0), (100.0, 25.0), (50.0, 24.0), (10.0, 30.0)):
        metrics = {"psnr": psnr, "lpips_alex": 1 / psnr, "sharpness": 0.9}
        evaluations.append(SavedEvaluation(PROTOCOL, metrics, []))
        part = PartSpeed(frames_per_second, 1.0, 2000.0, [1.0], memory=1, flops=1, weights=1)
        speeds.append(Speed(part, part))
    titles = ["fast", "<b>half", "beaten", "teacher"]
    path = tmp_path / "speed.html"
    compared = ComparedSpeeds(speeds, {"device": "a test"})
    path.write_text(render_speeds(titles, evaluations, compared), encoding="utf-8")
    with checked_page(context, path) as page:
        page.wait_for_selector("#charts .plot .scatterlayer")
        front, *points = page.evaluate("document.querySelector('#charts .plot').data")
        axis = page.evaluate("document.querySelector('#charts .plot').layout.xaxis")
        assert page.locator("figure.chart").count() == 2, "sharpness has no front"
    assert front["x"] == [1.0, 10.0, 100.0, 100.0]
    assert front["y"] == [20.0, 25.0, 30.0, 30.0]
    assert front["line"]["shape"] == "hv"
    assert [point["name"] for point in points] == [
        "PSNR, fast",
        "PSNR, &lt;b&gt;half",
        "PSNR, beaten",
        "PSNR, teacher",
    ]
    assert axis["type"] == "log"
    assert -1 < axis["range"][0] < 0 < 2 < axis["range"][1] < 3, "in powers of ten"
