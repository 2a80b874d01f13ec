"""A browser (Debian's Chromium, driven by playwright, which needs no browser of its own) and a page in it."""

import json
import shutil

import pytest

from telecine.report.page import write_report

from .runs import few_records, write_clips_of, write_run

WINDOW = {"width": 1280, "height": 900}
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser):
    """A window for all tests, with an empty tab: a new tab takes half of the processor time of a new window."""
    context = browser.new_context(
        viewport=WINDOW,
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.new_page()
    yield context
    context.close()


@pytest.fixture(scope="module")
def logged():
    """The records of the runs in `report`."""
    return few_records(80)


@pytest.fixture(scope="module")
def report(tmp_path_factory, logged):
    """The page of two runs. The frames of the clip that opens first are stamped with their numbers."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / name, logged, f"name: {name}") for name in ("first", "second")]
    write_clips_of(runs[0])
    shutil.copytree(runs[0] / "validation", runs[1] / "validation")  # the same clips
    (runs[0] / "environment.json").write_text(json.dumps({"torch": "2.13"}))
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def opened(context, report):
    """The page in the browser, with its messages and requests."""
    from .browser import open_page

    opened = open_page(context, report)
    yield opened
    opened.page.close()


@pytest.fixture
def page(opened):
    """The page, showing the first frame of the stamped clip of the last validation, compared with nothing."""
    from .browser import wait_for_frame

    opened.page.set_viewport_size(WINDOW)
    opened.page.select_option("#run-1", "")
    opened.page.select_option("#run-0", "0")
    opened.page.click("#clip-table tbody tr:first-child button")
    wait_for_frame(opened.page, 0)
    return opened.page
