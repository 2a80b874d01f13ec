"""The player of the page in a real browser."""

import shutil

import pytest

pytest.importorskip("playwright.sync_api")

from telecine.report.page import write_report

from .browser import (
    evaluate,
    open_page,
    pane_image,
    shown_number,
    shown_numbers,
    stable_box,
    wait_for_frame,
)
from .runs import STAMPED_FRAMES, write_clips_of, write_run

pytestmark = pytest.mark.slow
TIMES = "\u00d7"
LAST = STAMPED_FRAMES - 1


@pytest.fixture(scope="module")
def logged():
    """Nothing: these tests look at no charts, whose scripts take seconds to load."""
    return []


def button(page, name):
    return page.get_by_role("button", name=name)


def press(page, *steps):
    """Press keys in turn, and check that the player shows the frame that follows from each."""
    for key, number in steps:
        page.keyboard.press(key)
        wait_for_frame(page, number)
        assert shown_number(page) == number


def test_each_step_is_exactly_one_frame(page):
    shown = [shown_numbers(page)]
    for number in range(1, STAMPED_FRAMES):
        button(page, "One frame forward").click()
        wait_for_frame(page, number)
        shown.append(shown_numbers(page))
    assert shown == [(number, number) for number in range(STAMPED_FRAMES)]
    button(page, "One frame forward").click()
    assert shown_number(page) == LAST, "there is no frame after the last"
    for name, number in (("One frame back", LAST - 1), ("First frame", 0), ("Last frame", LAST)):
        button(page, name).click()
        wait_for_frame(page, number)
        assert shown_number(page) == number


def test_a_frame_is_drawn_after_the_browser_presents_it(page):
    """After `seeked`, drawing a video on a canvas gave the previous frame once in 3000 times."""
    result = page.evaluate(
        """async () => {
            const store = new FrameStore(DATA.validations[1].clips[0]);
            await store.get(0);
            const { video } = store;
            const callbacks = [];
            video.requestVideoFrameCallback = (callback) => callbacks.push(callback);
            let isDrawn = false;
            const frame = store.get(3).then(() => { isDrawn = true; });
            const seeked = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
            await seeked.then(() => new Promise((resolve) => { setTimeout(resolve, 100); }));
            const isEarly = isDrawn;
            const first = callbacks.splice(0);
            first[0](0, { mediaTime: 2 / store.clip.fps });
            callbacks[0](0, { mediaTime: 3 / store.clip.fps });
            await frame;
            await store.get(5); // its presentation is not reported
            const kept = [...store.cache.keys()].filter((number) => number > 0);
            store.close();
            return [isEarly, first.length, kept];
        }"""
    )
    assert result == [False, 1, [3]], "drawn early, one callback, and kept only if presented"


def test_frames_are_exact_in_any_order(page):
    timeline = page.locator("#timeline")
    box = stable_box(page, "#timeline")
    for number in (7, 2, 11, 0, 8, 3):
        x = 40 + number / LAST * (box["width"] - 52)
        timeline.click(
            position={"x": x, "y": 40}
        )  # waits until the page is stable, unlike `page.mouse`
        wait_for_frame(page, number)
        assert shown_number(page) == number


def test_it_plays_and_pauses(page):
    page.select_option("#speed", "0.25")  # 160 ms per frame, so that each is observed
    button(page, "Play").click()
    for number in (3, LAST, 1):  # it loops
        wait_for_frame(page, number)
    assert evaluate(page, "#frame-readout", "e => e.ariaLive") == "off"
    button(page, "Pause").click()
    requested = page.get_attribute("#timeline", "aria-valuenow")
    wait_for_frame(page, int(requested) - 1)  # its decoding may not have ended yet
    number = int(page.get_attribute("#player", "data-shown"))
    assert shown_number(page) == number
    assert evaluate(page, "#frame-readout", "e => e.ariaLive") == "polite"
    page.wait_for_timeout(200)
    assert int(page.get_attribute("#player", "data-shown")) == number


def test_it_plays_from_the_first_frame_on_after_the_last_and_ends_there_without_loop(page):
    page.select_option("#speed", "0.1")
    button(page, "Last frame").click()
    wait_for_frame(page, LAST)
    button(page, "Play").click()
    page.wait_for_function(
        "n => document.getElementById('player').dataset.shown !== n", arg=str(LAST)
    )
    assert page.get_attribute("#player", "data-shown") == "0"
    button(page, "Loop").click()
    page.select_option("#speed", "2")
    wait_for_frame(page, LAST)
    button(page, "Play").wait_for()
    assert shown_number(page) == LAST
    button(page, "Loop").click()


def test_each_action_has_a_key(page):
    page.focus("#panes")
    press(page, ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", LAST), ("Home", 0))
    page.focus("#timeline")
    press(page, ("ArrowRight", 1))
    assert page.get_attribute("#timeline", "aria-valuetext") == "frame 2 of 12, 0.04 s, 100.00 dB"
    assert page.inner_text("#frame-readout") == "frame 2 of 12, 0.04 s, 100.00 dB"
    for name in ("Pause", "Play"):
        page.keyboard.press("Space")
        button(page, name).wait_for()
    before = page.input_value("#speed")
    page.keyboard.press("]")
    assert float(page.input_value("#speed")) > float(before)
    page.keyboard.press("[")
    for is_loop in ("false", "true"):
        page.keyboard.press("l")
        assert button(page, "Loop").get_attribute("aria-pressed") == is_loop
    for key, title in (("n", "clip 1.mp4, frame 10"), ("p", "clip 0.mp4, frame 0")):
        page.keyboard.press(key)
        assert page.inner_text("#clip-title") == title


def test_all_panes_zoom_and_move_together(page):
    def pictures():
        return [pane_image(page, pane).tobytes() for pane in range(3)]

    page.locator("#best-and-worst").get_by_role("button", name="worst PSNR").click()
    wait_for_frame(page, 0)
    whole = pictures()
    button(page, "Zoom in").click()
    button(page, "Zoom in").click()
    assert page.inner_text("#zoom") == f"2.3 {TIMES}"
    zoomed = pictures()
    page.focus("#panes")
    page.keyboard.press("Shift+ArrowRight")
    moved = pictures()
    assert all(len(set(images)) == 3 for images in zip(whole, zoomed, moved, strict=True))
    box = stable_box(page, "#panes canvas")
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.getElementById('zoom').textContent !== '2.3 \u00d7'")
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 80, steps=3)
    page.mouse.up()
    assert pane_image(page, 0).tobytes() not in {*whole, *zoomed, *moved}
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == f"1 {TIMES}"
    assert pictures() == whole


def test_pinching_zooms(page):
    page.focus("#panes")
    session = page.context.new_cdp_session(page)
    box = stable_box(page, "#panes canvas")
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for kind, distance in (
        ("touchStart", 20),
        ("touchMove", 30),
        ("touchMove", 40),
        ("touchEnd", None),
    ):
        fingers = (
            []
            if distance is None
            else [{"x": middle[0] + side * distance, "y": middle[1]} for side in (-1, 1)]
        )
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    page.wait_for_function("document.getElementById('zoom').textContent === '2 \u00d7'")
    page.keyboard.press("0")


def test_two_runs_play_the_same_clip_in_step(page):
    page.select_option("#run-1", "1")
    metrics = "PSNR 40.00, SSIM 0.9000, LPIPS (Alex) 0.1000"
    assert page.locator("#panes figcaption").all_inner_texts() == [
        "Input",
        f"first, step 60 {metrics}",
        f"second, step 60 {metrics}",
        f"first, step 60 Difference {TIMES} 4",
        f"second, step 60 Difference {TIMES} 4",
    ]
    page.focus("#panes")
    for key, number in (("End", LAST), ("ArrowLeft", LAST - 1)):
        page.keyboard.press(key)
        wait_for_frame(page, number)
        assert [shown_number(page, pane) for pane in range(3)] == [number] * 3
    assert page.inner_text("#frame-readout").endswith("100.00 dB, 100.00 dB")
    page.focus("#step-1")
    page.keyboard.press("Home")
    wait_for_frame(page, LAST - 1)
    assert page.inner_text("#panes figcaption b >> nth=1") == "second, step 0"
    assert page.locator("#timeline path").count() == 2
    page.evaluate("DATA.validations[2].clips[0].sha256 = ''")  # as if the run had another clip
    page.select_option("#run-0", "0")
    assert (
        page.inner_text("#source-note")
        == "second, step 0: this clip is not among those of this validation."
    )
    assert page.locator("#panes canvas").count() == 3
    page.evaluate("DATA.validations[2].clips[0].sha256 = DATA.validations[3].clips[0].sha256")


def test_a_missing_video_shows_an_error(context, tmp_path):
    run = write_run(tmp_path / "run", [])
    write_clips_of(run, steps=(20,))
    page_file = write_report([run])
    shutil.rmtree(tmp_path / "run" / "report_videos")

    page = open_page(context, page_file).page
    page.wait_for_selector("#player-error:visible")
    words = "cannot be played. Is the folder of videos beside this page?"
    assert words in page.inner_text("#player-error")
    page.close()
