"""The page in a real browser: Debian's Chromium, driven by playwright, which brings no browser of its own."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from telecine.report.clips import ShownClip, write_clips
from telecine.report.page import write_report

from .runs import FPS, STAMPED_FRAMES, number_of, records, stamped, write_clips_of, write_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

TIMES = "\u00d7"
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """The page, and what the browser had to say about it."""

    page: sync_api.Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Write the page of two runs; the clip that opens first carries the numbers of its frames."""
    folder = tmp_path_factory.mktemp("report")
    made = [write_run(folder / name, records(80, val_every=20), f"name: {name}") for name in ("first", "second")]
    for run in made:
        write_clips_of(run)
    (made[0] / "environment.json").write_text(json.dumps({"torch": "2.13"}))
    return write_report(made, folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser: sync_api.Browser, report: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.on("pageerror", lambda error: opened.said.append(str(error)))
    page.on("request", lambda request: opened.asked.append(request.url))
    page.goto(report.as_uri())
    yield opened
    page.close()


@pytest.fixture
def page(opened: Opened) -> sync_api.Page:
    """Return the page with the stamped clip at its first frame."""
    opened.page.select_option("#validation", "1")
    opened.page.click("#clip-table tbody tr:first-child button")
    wait_for_frame(opened.page, 0)
    return opened.page


def wait_for_frame(page: sync_api.Page, number: int) -> None:
    # Looks at every frame of the screen; waiting for a selector would look twice a second.
    page.wait_for_function("n => document.getElementById('player').dataset.shown === n", arg=str(number))


def picture(page: sync_api.Page, pane: int) -> Image.Image:
    """Return what a pane shows, without its rim, on which the mark of the focus may lie."""
    content = page.locator("#panes canvas").nth(pane).screenshot()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return image.crop((8, 8, image.width - 8, image.height - 8))


def stamp(page: sync_api.Page, pane: int = 0) -> int:
    """Read the number of the frame that a pane really shows."""
    image = picture(page, pane)
    return number_of(image.getpixel((image.width // 2, image.height // 2))[0])


def box_at_rest(page: sync_api.Page, selector: str) -> dict[str, float]:
    """Return where an element lies once it no longer moves: the click before may have scrolled the page."""
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def evaluate(page: sync_api.Page, selector: str, expression: str) -> object:
    return page.locator(selector).first.evaluate(expression)


def test_it_opens_from_a_file_without_network_or_complaint(opened, page, report):
    assert page.title() == "first, second: telecine report"
    assert opened.said == []
    beside = report.parent.as_uri()
    assert len(opened.asked) > 2
    assert [url for url in opened.asked if not url.startswith((beside, "data:"))] == []
    assert page.locator("#charts figure").count() == 8


def test_every_step_is_exactly_one_frame(page):
    shown = [(stamp(page, 0), stamp(page, 1))]
    for number in range(1, STAMPED_FRAMES):
        page.get_by_role("button", name="One frame forward").click()
        wait_for_frame(page, number)
        shown.append((stamp(page, 0), stamp(page, 1)))
    assert shown == [(number, number) for number in range(STAMPED_FRAMES)]
    page.get_by_role("button", name="One frame forward").click()
    assert stamp(page) == STAMPED_FRAMES - 1, "there is none after the last"
    for number in (STAMPED_FRAMES - 2, STAMPED_FRAMES - 3):
        page.get_by_role("button", name="One frame back").click()
        wait_for_frame(page, number)
        assert stamp(page) == number
    page.get_by_role("button", name="First frame").click()
    wait_for_frame(page, 0)
    assert stamp(page) == 0
    page.get_by_role("button", name="Last frame").click()
    wait_for_frame(page, STAMPED_FRAMES - 1)


def test_a_frame_is_taken_once_the_browser_presents_it(page):
    """A canvas was given the frame before, once in 3000, though the video had sought."""
    early = page.evaluate(
        """async () => {
            const store = new FrameStore(DATA.validations[1].clips[0]);
            await store.get(0);
            const { video } = store;
            const held = [];
            video.requestVideoFrameCallback = (look) => held.push(look);
            let taken = false;
            const frame = store.get(3).then(() => { taken = true; });
            const sought = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
            await sought.then(() => new Promise((resolve) => { setTimeout(resolve, 100); }));
            const early = taken;
            const again = held.splice(0);
            again[0](0, { mediaTime: 2 / store.clip.fps });
            held[0](0, { mediaTime: 3 / store.clip.fps });
            await frame;
            await store.get(5); // of which nothing is said
            const kept = [...store.kept.keys()].filter((number) => number > 0);
            store.close();
            return [early, again.length, kept];
        }"""
    )
    assert early == [False, 1, [3]], "taken early, asked once, and kept where it was presented"


def test_frames_are_exact_in_any_order(page):
    timeline = page.locator("#timeline")
    box = box_at_rest(page, "#timeline")
    for number in (7, 2, 11, 0, 8, 3):
        x = 40 + number / (STAMPED_FRAMES - 1) * (box["width"] - 52)
        timeline.click(position={"x": x, "y": 40})  # once the page has come to rest, unlike a bare mouse
        wait_for_frame(page, number)
        assert stamp(page) == number


def test_it_plays_and_pauses(page):
    page.select_option("#speed", "0.25")  # a frame in 160 ms: it will be noticed
    page.get_by_role("button", name="Play").click()
    for number in (3, STAMPED_FRAMES - 1, 1):  # it repeats
        wait_for_frame(page, number)
    assert evaluate(page, "#frame-readout", "e => e.ariaLive") == "off"
    page.get_by_role("button", name="Pause").click()
    asked = page.get_attribute("#timeline", "aria-valuenow")
    wait_for_frame(page, int(asked) - 1)  # which may still have been decoded
    number = int(page.get_attribute("#player", "data-shown"))
    assert stamp(page) == number
    assert evaluate(page, "#frame-readout", "e => e.ariaLive") == "polite"
    page.wait_for_timeout(200)
    assert int(page.get_attribute("#player", "data-shown")) == number


def test_without_loop_it_ends_at_the_last_frame(page):
    page.get_by_role("button", name="Loop").click()
    page.select_option("#speed", "2")
    page.get_by_role("button", name="Play").click()
    wait_for_frame(page, STAMPED_FRAMES - 1)
    page.get_by_role("button", name="Play").wait_for()
    assert stamp(page) == STAMPED_FRAMES - 1
    page.get_by_role("button", name="Loop").click()


def test_the_keyboard_does_it_all(page):
    page.focus("#panes")
    expected = [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", STAMPED_FRAMES - 1), ("Home", 0)]
    for key, number in expected:
        page.keyboard.press(key)
        wait_for_frame(page, number)
        assert stamp(page) == number
    page.focus("#timeline")
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 1)
    assert page.get_attribute("#timeline", "aria-valuetext") == "frame 2 of 12, 0.04 s, 100.00 dB"
    assert page.inner_text("#frame-readout") == "frame 2 of 12, 0.04 s, 100.00 dB"
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play").wait_for()
    before = page.input_value("#speed")
    page.keyboard.press("]")
    assert float(page.input_value("#speed")) > float(before)
    page.keyboard.press("[")
    page.keyboard.press("l")
    assert page.get_by_role("button", name="Loop").get_attribute("aria-pressed") == "false"
    page.keyboard.press("l")
    page.keyboard.press("n")
    assert page.inner_text("#clip-title") == "clip 1.mp4, frame 10"
    page.keyboard.press("p")
    assert page.inner_text("#clip-title") == "clip 0.mp4, frame 0"


def test_all_panes_zoom_and_move_together(page):
    page.locator("#standing-out").get_by_role("button", name="worst PSNR").click()
    wait_for_frame(page, 0)
    whole = [picture(page, pane).tobytes() for pane in range(3)]
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    assert page.inner_text("#zoom") == f"2.3 {TIMES}"
    zoomed = [picture(page, pane).tobytes() for pane in range(3)]
    page.focus("#panes")
    page.keyboard.press("Shift+ArrowRight")
    moved = [picture(page, pane).tobytes() for pane in range(3)]
    for before, near, aside in zip(whole, zoomed, moved, strict=True):
        assert len({before, near, aside}) == 3
    box = box_at_rest(page, "#panes canvas")
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.getElementById('zoom').textContent !== '2.3 \u00d7'")
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 80, steps=3)
    page.mouse.up()
    assert picture(page, 0).tobytes() not in {*whole, *zoomed, *moved}
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == f"1 {TIMES}"
    assert [picture(page, pane).tobytes() for pane in range(3)] == whole


def test_two_fingers_zoom(page):
    page.focus("#panes")
    session = page.context.new_cdp_session(page)
    box = box_at_rest(page, "#panes canvas")
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 40), ("touchEnd", None)):
        fingers = [] if apart is None else [{"x": middle[0] + side * apart, "y": middle[1]} for side in (-1, 1)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    page.wait_for_function("document.getElementById('zoom').textContent === '2 \u00d7'")
    page.keyboard.press("0")


def test_clips_are_sorted_and_the_outstanding_ones_found(page):
    page.locator("#clip-table").get_by_role("button", name="PSNR").first.click()
    titles = page.locator("#clip-table tbody th").all_inner_texts()
    assert titles == ["clip 2.mp4, frame 20", "clip 1.mp4, frame 10", "clip 0.mp4, frame 0"]
    page.locator("#standing-out").get_by_role("button", name="worst PSNR").click()
    assert page.inner_text("#clip-title") == "clip 2.mp4, frame 20"
    assert page.inner_text("#clip-table tr[aria-current] th") == "clip 2.mp4, frame 20"
    page.select_option("#validation", "0")
    assert page.inner_text("#clip-title") == "clip 2.mp4, frame 20", "the same clip, before training"
    page.locator("#clip-table").get_by_role("button", name="Clip", exact=True).click()


def curve(page: sync_api.Page, title: str) -> str:
    chart = page.locator("#charts figure").filter(has=page.get_by_role("heading", name=title))
    return chart.locator("path.line").first.get_attribute("d")


def test_smoothing_and_scale_change_the_curves(page):
    title = "discriminator: mean logits"
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


def test_curves_and_runs_can_be_hidden(page):
    chart = page.locator("#charts figure").filter(has=page.get_by_role("heading", name="mean logits"))
    assert chart.locator("path.line").count() == 4
    chart.get_by_role("button", name="real").click()
    assert chart.locator("path.line").count() == 2
    page.locator("#run-legend").get_by_role("button", name="second").click()
    assert chart.locator("path.line").count() == 1
    chart.get_by_role("button", name="real").click()
    page.locator("#run-legend").get_by_role("button", name="second").click()
    lines = chart.locator("path.line").all()
    assert len({(line.get_attribute("stroke"), line.get_attribute("stroke-dasharray")) for line in lines}) == 4


def test_values_are_read_by_pointer_and_by_key(page):
    chart = page.locator("#charts figure").nth(1)
    plot = chart.locator("> svg")
    plot.hover()
    assert chart.locator("g text", has_text="step ").count() == 1
    plot.focus()
    page.keyboard.press("Home")
    said = page.text_content("#curve-readout")
    assert said.startswith("PSNR (dB), larger is better, step 0:")
    assert "held out of second 11" in said
    page.keyboard.press("ArrowRight")
    assert page.text_content("#curve-readout") != said
    page.keyboard.press("Escape")
    assert chart.locator("g text").count() == 0


def luminance(page: sync_api.Page, selector: str, name: str) -> float:
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
def test_light_and_dark_can_be_read(page, theme):
    page.get_by_label(theme, exact=True).check()
    ground = luminance(page, "body", "backgroundColor")
    assert (ground < 0.1) == (theme == "Dark")
    surface = luminance(page, "#player", "backgroundColor")
    for selector in TEXTS:
        assert min(contrast(luminance(page, selector, "color"), back) for back in (ground, surface)) >= 4.5, selector
    primary = [luminance(page, "button.primary", name) for name in ("color", "backgroundColor")]
    assert contrast(*primary) >= 4.5
    page.get_by_label("System").check()


def test_the_system_decides_without_a_choice(page):
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(luminance(page, "body", "backgroundColor"))
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert evaluate(page, "html", "e => getComputedStyle(e).scrollBehavior") == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert grounds[0] > 0.8
    assert grounds[1] < 0.05


def test_every_control_has_a_name_and_can_be_reached(page):
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
    assert {"validation", "panes", "timeline", "play", "loop", "speed", "zoom", "smoothing"} <= reached
    page.focus("#panes")
    page.keyboard.press("Tab")
    assert evaluate(page, "#timeline", "e => getComputedStyle(e).outlineStyle") == "solid", "the focus is seen"


def test_a_phone_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    for selector in ("#settings summary", "#curves summary", "#keys summary"):
        page.locator(selector).click()
    width = page.evaluate("document.documentElement.scrollWidth")
    for selector in ("#settings summary", "#curves summary", "#keys summary"):
        page.locator(selector).click()
    page.set_viewport_size({"width": 1280, "height": 900})
    assert width == 360


def open_other(browser: sync_api.Browser, path: Path, look: Callable[[sync_api.Page], None]) -> list[str]:
    """Look at another page; return what the browser had to say."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    look(page)
    page.close()
    return said


def test_an_older_run_has_a_player_too(browser, tmp_path):
    run = write_run(tmp_path / "run", records(20))
    write_clips_of(run, steps=(20,))
    shutil.copyfile(run / "validation" / "step-00000020" / "clip-00.mp4", run / "side_by_side.mp4")
    shutil.rmtree(run / "validation")

    def look(page: sync_api.Page) -> None:
        wait_for_frame(page, 0)
        page.focus("#panes")
        page.keyboard.press("End")
        wait_for_frame(page, STAMPED_FRAMES - 1)
        assert page.locator("#panes canvas:visible").count() == 1
        assert not page.is_visible("#clip-table")

    assert open_other(browser, write_report([run]), look) == []


def test_a_video_that_is_gone_is_said(browser, tmp_path):
    run = write_run(tmp_path / "run", records(20))
    write_clips_of(run, steps=(20,))
    page = write_report([run])
    shutil.rmtree(tmp_path / "run" / "report_videos")

    def look(opened: sync_api.Page) -> None:
        opened.wait_for_selector("#player-error:visible")
        assert "cannot be played. Is the folder of videos beside this page?" in opened.inner_text("#player-error")

    open_other(browser, page, look)


def test_what_was_not_measured_is_a_dash_and_sorted_last(browser, tmp_path):
    run = write_run(tmp_path / "run", records(20))
    values = {"high": 30.0, "none": math.nan, "low": 20.0}
    clips = [ShownClip(stamped(2), stamped(2), {"psnr": value}, name, 0) for name, value in values.items()]
    write_clips(run, 20, clips, fps=FPS)

    def look(page: sync_api.Page) -> None:
        wait_for_frame(page, 0)
        cells = page.locator("#clip-table tbody tr td:nth-child(2)")
        assert cells.all_inner_texts() == ["30.00", "\u2013", "20.00"]
        page.click("#clip-table thead th:nth-child(2) button")
        assert cells.all_inner_texts() == ["20.00", "30.00", "\u2013"]
        page.click("#clip-table thead th:nth-child(2) button")
        assert cells.all_inner_texts() == ["30.00", "20.00", "\u2013"]

    assert open_other(browser, write_report([run]), look) == []


def test_a_run_without_videos_or_figures_opens(browser, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    assert open_other(browser, write_report([run]), lambda page: page.get_by_role("main").wait_for()) == []
