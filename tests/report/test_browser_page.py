"""Curves, tables, themes and accessibility of the page in a real browser."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("playwright.sync_api")

from PIL import Image
from playwright.sync_api import Page

from telecine.report.clips import ValidationClip, write_clips
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.tools.latents.decoding import TRANSFORMS
from telecine.tools.latents.page import write_latents
from telecine.tools.latents.space import Channels, LatentReport, LatentSpace, Spectrum

from .browser import check_page, evaluate, wait_for_frame
from .runs import FPS, records, stamped, write_run

pytestmark = pytest.mark.slow


def test_it_opens_from_a_file_without_network_or_messages(opened, page, report):
    assert page.title() == "first, second: telecine report"
    assert opened.messages == []
    folder = report.parent.as_uri()
    assert len(opened.requests) > 2
    assert [url for url in opened.requests if not url.startswith((folder, "data:"))] == []
    assert page.locator("#charts figure").count() == 9


def test_the_figures_of_two_unfinished_runs_are_seen_whole(context, tmp_path):
    steps = "steps: 2400\n"
    runs = [write_run(tmp_path / name, records(4, every=480, val_every=480), steps) for name in ("first", "second")]

    def check(page: Page) -> None:
        table = page.locator("[aria-labelledby='summary-title']")
        assert "of 2400, measured at 1920" in table.inner_text()
        assert table.evaluate("each => each.scrollWidth - each.clientWidth") == 0

    assert check_page(context, write_report(runs, tmp_path / "report.html"), check) == []


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
    assert page.inner_text("#clip-title") == "clip 2.mp4, frame 20", "the same clip of the first validation"
    page.locator("#clip-table").get_by_role("button", name="Clip", exact=True).click()


def test_missing_values_are_a_dash_and_sorted_last(context, tmp_path):
    run = write_run(tmp_path / "run", records(20))
    values = {"high": 30.0, "none": math.nan, "low": 20.0}
    clips = [ValidationClip(stamped(2), stamped(2), {"psnr": value}, name, 0, FPS) for name, value in values.items()]
    clips.append(replace(clips[0], metrics={}, source="without"))
    write_clips(Run(run), 20, clips, fps=FPS)

    def check(page: Page) -> None:
        wait_for_frame(page, 0)
        cells = page.locator("#clip-table tbody tr td:nth-child(2)")
        assert cells.all_inner_texts() == ["30.00", "\u2013", "20.00", "\u2013"]
        page.click("#clip-table thead th:nth-child(2) button")
        assert cells.all_inner_texts() == ["20.00", "30.00", "\u2013", "\u2013"]
        page.click("#clip-table thead th:nth-child(2) button")
        assert cells.all_inner_texts() == ["30.00", "20.00", "\u2013", "\u2013"]

    assert check_page(context, write_report([run]), check) == []


def curve(page: Page, title: str) -> str:
    chart = page.locator("#charts figure").filter(has=page.get_by_role("heading", name=title))
    return chart.locator("path.line").first.get_attribute("d")


def test_smoothing_and_scale_change_the_curves(page):
    title = "discriminator: logits"
    before = curve(page, title)
    page.locator("#smoothing").fill("0.95")
    assert page.inner_text("#smoothing-value") == "0.95"
    smooth = curve(page, title)
    page.get_by_label("Log", exact=True).check()
    assert len({before, smooth, curve(page, title)}) == 3
    page.get_by_label("Auto", exact=True).check()
    assert curve(page, title) == smooth
    page.locator("#smoothing").fill("0.6")
    assert curve(page, title) == before


@pytest.mark.parametrize(
    ("kind", "ends", "labelled"),
    [
        ("symlog", (0, 2e-4), (0, 5e-5, 1e-4, 1.5e-4, 2e-4)),
        ("symlog", (-2.5, -0.5), (-2.5, -2, -1.5, -1, -0.5)),
        ("symlog", (-0.02, 30), (-0.01, -1e-3, 0, 1e-3, 0.01, 0.1, 1, 10)),
        ("log", (0.15, 2.6), (0.5, 1, 1.5, 2, 2.5)),
        ("log", (2e-4, 5e3), (1e-3, 0.1, 10, 1e3)),
    ],
)
def test_a_vertical_axis_has_labels_where_the_curve_is(page, kind, ends, labelled):
    found = page.evaluate("([kind, ends]) => makeScale(kind, ends, [300, 0]).ticks", [kind, ends])
    assert sorted(found) == pytest.approx(labelled)


def test_curves_and_runs_can_be_hidden(page):
    chart = page.locator("#charts figure").filter(has=page.get_by_role("heading", name="discriminator: logits"))
    assert chart.locator("path.line").count() == 4
    chart.get_by_role("button", name="mean logit, real").click()
    assert chart.locator("path.line").count() == 2
    page.locator("#run-legend").get_by_role("button", name="second").click()
    assert chart.locator("path.line").count() == 1
    chart.get_by_role("button", name="mean logit, real").click()
    page.locator("#run-legend").get_by_role("button", name="second").click()
    lines = chart.locator("path.line").all()
    assert len({(line.get_attribute("stroke"), line.get_attribute("stroke-dasharray")) for line in lines}) == 4


@pytest.mark.parametrize("num_runs", [1, 2])
def test_the_linear_baseline_has_one_line_style(context, tmp_path, num_runs):
    lines = [{**line, "linear/ssim": 0.5} if "val/ssim" in line else line for line in records(40)]
    runs = [write_run(tmp_path / name, lines) for name in "ab"[:num_runs]]
    page = context.new_page()
    page.goto(write_report(runs, tmp_path / "page.html").as_uri())
    legends = page.locator("#charts .legend button")
    baseline = legends.filter(has_text="linear baseline").locator("line").all()
    others = legends.filter(has_not_text="linear baseline").locator("line").all()
    assert len(baseline) == 2  # PSNR, where the training clips have a curve, too, and SSIM
    assert {(line.get_attribute("stroke"), line.get_attribute("stroke-dasharray")) for line in baseline} == {
        ("var(--muted)", "7 3")
    }
    assert "7 3" not in {line.get_attribute("stroke-dasharray") for line in others}
    dashed = page.locator('#charts path.line[stroke-dasharray="7 3"]')
    assert dashed.count() == 2 * num_runs
    page.close()


def test_values_are_shown_by_pointer_and_keyboard(page):
    chart = page.locator("#charts figure").nth(1)
    plot = chart.locator("> svg")
    plot.hover()
    assert chart.locator("g text", has_text="step ").count() == 1
    plot.focus()
    page.keyboard.press("Home")
    text = page.text_content("#curve-readout")
    assert text.startswith("PSNR (dB), larger is better, step 0:")
    assert "PSNR, held out of second 11" in text
    page.keyboard.press("ArrowRight")
    assert page.text_content("#curve-readout") != text
    page.keyboard.press("Escape")
    assert chart.locator("g text").count() == 0


def test_beyond_its_end_a_run_has_no_value(context, tmp_path):
    runs = [write_run(tmp_path / str(number), records(number)) for number in (20, 40)]

    def check(page: Page) -> None:
        plot = page.locator("#charts figure").nth(1)
        plot.locator("> svg").focus()
        for key, step, of_run in (("Home", 0, "20"), ("End", 40, "40")):
            page.keyboard.press(key)
            text = page.text_content("#curve-readout")
            assert text.startswith(f"PSNR (dB), larger is better, step {step}: ")
            assert f"PSNR, held out of {of_run} " in text
        assert "PSNR, held out of 20 " not in text
        assert plot.locator(".legend b").count() == 3, "a value of each curve of the other run"
        page.keyboard.press("Escape")
        assert plot.locator(".legend b").count() == 6

    assert check_page(context, write_report(runs, tmp_path / "page.html"), check) == []


def luminance(page: Page, selector: str, name: str) -> float:
    """Return the relative luminance (WCAG 2.2) of a computed colour."""
    text = evaluate(page, selector, f"e => getComputedStyle(e)['{name}']")
    values = [int(value) / 255 for value in text[text.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


TEXTS = [
    "h1",
    ".hint",
    "nav a",
    "#clip-table tbody button",
    ".badge.best",
    ".badge.worst",
    ".chart b",
    "#frame-readout",
]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_light_and_dark_have_enough_contrast(page, theme):
    page.get_by_label(theme, exact=True).check()
    background = luminance(page, "body", "backgroundColor")
    assert (background < 0.1) == (theme == "Dark")
    surface = luminance(page, "#player", "backgroundColor")
    for selector in TEXTS:
        assert min(contrast(luminance(page, selector, "color"), back) for back in (background, surface)) >= 4.5, (
            selector
        )
    primary = [luminance(page, "button.primary", name) for name in ("color", "backgroundColor")]
    assert contrast(*primary) >= 4.5
    page.get_by_label("System").check()


def test_the_default_follows_the_system(page):
    backgrounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(luminance(page, "body", "backgroundColor"))
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert evaluate(page, "html", "e => getComputedStyle(e).scrollBehavior") == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert backgrounds[0] > 0.8
    assert backgrounds[1] < 0.05


def test_every_control_has_a_name_and_a_tab_stop(page):
    controls = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, a, summary, [tabindex='0']")].map(
            (e) => e.ariaLabel || e.innerText || e.labels?.[0]?.innerText
                || document.getElementById(e.getAttribute("aria-labelledby"))?.innerText || `none: ${e.outerHTML}`)"""
    )
    assert len(controls) > 60
    assert [name for name in controls if name.startswith("none")] == []
    roles = ["banner", "navigation", "main", "contentinfo"]
    assert [page.get_by_role(role).count() for role in roles] == [1, 1, 1, 1]
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.do || ''"))
    assert {"run-0", "step-0", "run-1", "panes", "timeline", "play", "loop", "speed", "zoom", "smoothing"} <= reached
    page.focus("#panes")
    page.keyboard.press("Tab")
    assert evaluate(page, "#timeline", "e => getComputedStyle(e).outlineStyle") == "solid", "the focus is visible"


def test_a_narrow_page_does_not_scroll_horizontally(page):
    page.set_viewport_size({"width": 360, "height": 740})
    for selector in ("#settings summary", "#curves summary", "#keys summary"):
        page.locator(selector).click()
    width = page.evaluate("document.documentElement.scrollWidth")
    for selector in ("#settings summary", "#curves summary", "#keys summary"):
        page.locator(selector).click()
    page.set_viewport_size({"width": 1280, "height": 900})
    assert width == 360


def test_long_names_do_not_make_a_narrow_page_scroll(context, tmp_path):
    runs = [write_run(tmp_path / f"{letter * 60}_1e-4", records(20)) for letter in "abc"]
    for run in runs[:2]:
        write_clips(Run(run), 20, [ValidationClip(stamped(2), stamped(2), {"psnr": 1.0}, "a", 0, FPS)], fps=FPS)
    (runs[2] / "metrics.jsonl").write_text("[]\n")

    def check(page: Page) -> None:
        page.set_viewport_size({"width": 360, "height": 700})
        page.locator("#run-0").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360

    assert check_page(context, write_report(runs, tmp_path / "page.html"), check) == []


def test_a_run_without_videos_or_metrics_opens(context, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    assert check_page(context, write_report([run]), lambda page: page.get_by_role("main").wait_for()) == []


def test_the_page_of_a_run_that_trains_shows_new_values_by_itself(context, tmp_path):
    run, other = (write_run(tmp_path / name, records(20)) for name in ("run", "other"))
    write_clips(Run(run), 20, [ValidationClip(stamped(2), stamped(2), {"psnr": 1.0}, "a", 0, FPS)], fps=FPS)
    page_file = write_report([run, other], tmp_path / "page.html", is_live=True)

    def check(page: Page) -> None:
        def shows_the_same() -> None:
            page.locator("#charts").wait_for()
            assert page.input_value("#smoothing") == "0.9"
            assert evaluate(page, "html", "e => e.dataset.theme") == "dark"
            assert page.locator("button[aria-pressed=false]").count() == 3
            for button in (*legends, page.get_by_role("button", name="Loop")):
                assert button.get_attribute("aria-pressed") == "false"
            assert (page.input_value("#speed"), page.inner_text("#zoom")) == ("2", "1.5 \u00d7")
            assert evaluate(page, "#curves th[aria-sort=descending] button", "e => e === document.activeElement")
            assert page.locator("details[open]").count() == page.locator("#curves details[open]").count() == 1

        wait_for_frame(page, 0)
        page.locator("#smoothing").fill("0.9")
        legends = page.get_by_role("button", name="other", exact=True), page.locator("#charts .legend button").nth(1)
        for button in (*legends, page.get_by_role("button", name="Loop")):
            button.click()
        page.select_option("#speed", "2")
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_label("Dark", exact=True).check()
        page.locator("#curves summary").click()
        last = page.locator("#curves th").get_by_role("button", name="Last", exact=True)
        last.click()
        last.click()
        page.evaluate("look()")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 21, "train/lr": 0.5}\n')
        write_report([run, other], page_file, is_live=True)
        with page.expect_navigation():
            page.evaluate("look()")
        shows_the_same()
        assert page.locator("#summary b").first.inner_text() == "21"
        write_report([run, other], page_file)
        with page.expect_navigation():
            page.evaluate("look()")
        shows_the_same()
        assert page.evaluate("DATA.live") is None, "the last page does not look for others"

    assert check_page(context, page_file, check) == []


def chart(page: Page, title: str):
    return page.locator("#charts figure").filter(has=page.get_by_role("heading", name=title, exact=True))


def test_labels_differ_one_value_is_a_mark_and_schedules_are_not_smoothed(context, tmp_path):
    lines = [{"step": 10 * step, "train/lr": 0.1**step, "latent/std": 14.6100 + step / 1e4} for step in range(1, 4)]
    lines.append({"step": 30, "train/mse": 0.5})

    def check(page: Page) -> None:
        labels = chart(page, "latent std").locator("text").all_text_contents()
        assert len({*labels}) == len(labels) > 6
        assert "14.6102" in labels
        one = chart(page, "PSNR (dB), larger is better")
        assert one.locator("circle").count() == 1
        box, plot = one.locator("circle").bounding_box(), one.locator("> svg").bounding_box()
        assert box["width"] > 4
        assert box["x"] + box["width"] <= plot["x"] + plot["width"]
        rate = chart(page, "learning rate")
        assert rate.locator("path.raw").count() == 0
        assert "smoothed" not in rate.inner_text()
        assert rate.locator("circle").count() == 3

    assert check_page(context, write_report([write_run(tmp_path / "run", lines)]), check) == []


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


def test_the_values_of_a_plot_are_copied_and_its_figure_is_saved(browser, report, tmp_path):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], color_scheme="dark")
    page = context.new_page()
    page.goto(report.as_uri())
    figure = chart(page, "SSIM, larger is better")
    figure.get_by_role("button", name="CSV").click()
    figure.get_by_text("copied").wait_for()
    rows = [line.split(",") for line in page.evaluate("navigator.clipboard.readText()").splitlines()]
    assert rows[0] == ["step", '"SSIM', " held out", ' first"', '"SSIM', " held out", ' second"']
    assert [row[0] for row in rows[1:]] == ["0", "20", "40", "60", "80"]
    assert rows[-1] == ["80", "0.5", "0.5"]
    with page.expect_download() as download:
        figure.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == "SSIM-larger-is-better.png"
    download.value.save_as(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = image.convert("RGB")
    assert pixels.width > 600
    colours = {colour for _, colour in pixels.getcolors(2**24)}
    assert {(26, 28, 31), (233, 233, 230), (111, 177, 245)} <= colours, "surface, text and a curve of the dark theme"
    context.close()


def test_a_narrow_page_shows_all_of_the_first_table(context, report):
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(report.as_uri())
    cells = page.locator("#summary .figures td").all()
    assert len(cells) == 8
    for cell in cells:
        box = cell.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    label = page.evaluate("getComputedStyle(document.querySelectorAll('#summary td')[1], '::before').content")
    assert label == '"PSNR ↑"'
    page.close()


def latent_space(title: str, num_channels: int = 3) -> LatentSpace:
    names = ["none", *TRANSFORMS]
    values = [0.5] * num_channels
    return LatentSpace(
        title=title,
        shape=[num_channels, 1, 2, 2],
        channels=Channels(values, values, values, []),
        eigenvalues=values,
        effective_rank=3.0,
        spectrum=Spectrum([0.25, 0.5], [0.6, 0.4], [0.9, 0.1], {"latent": 0.4, "video": 0.1}),
        autocorrelation={"space": [0.5, 0.2], "time": [0.1], "video_space": [0.9, 0.8], "video_time": [0.9]},
        equivariance={name: {"mse": 0.1 * index + 0.1, "psnr": 20.0} for index, name in enumerate(names)},
        noise_psnr={"0": 30.0, "0.2": 25.0},
    )


def test_the_plots_of_latents_follow_the_theme(context, tmp_path):
    path = write_latents(LatentReport(models=[latent_space("one"), latent_space("two")], protocol={}), tmp_path)

    def check(page: Page) -> None:
        assert page.locator("#charts figure").count() == 6
        page.get_by_label("Dark", exact=True).check()
        assert luminance(page, "#charts figure", "backgroundColor") < 0.1
        assert contrast(*(luminance(page, "#charts figure", name) for name in ("color", "backgroundColor"))) >= 4.5
        figure = chart(page, "Equivariance, smaller is better")
        assert {"none", *TRANSFORMS} <= {*figure.locator("> svg text").all_text_contents()}
        assert figure.locator("circle").count() == 2 * (1 + len(TRANSFORMS))
        figure.locator("> svg").focus()
        page.keyboard.press("End")
        assert page.text_content("#curve-readout").startswith(f"Equivariance, smaller is better, {[*TRANSFORMS][-1]}:")
        assert chart(page, "Eigenvalues").locator("line.cursor").count() == 0, "it has another horizontal axis"
        assert chart(page, "Autocorrelation, time").locator("circle").count() == 4
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 360

    assert check_page(context, path, check) == []
