"""Helpers for tests of the page in a real browser."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import plotly
from PIL import Image
from playwright.sync_api import Page

from .runs import number_of

PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"


@dataclass
class Opened:
    """A page in the browser, with the messages of its console and its requests."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(context, path):
    """Open a file in a new tab, which the first tab opens: they share a process, and with it compiled scripts."""
    with context.pages[0].expect_popup() as popup:
        context.pages[0].evaluate("() => { open('about:blank'); }")
    page = popup.value
    opened = Opened(page)
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
    return opened


def share_plotly(path):
    """Let a page load the file of plotly, which the browser compiles once; a script in a page takes it two seconds."""
    html = path.read_text()
    in_page = f"<script>\n{PLOTLY.read_text()}\n</script>"
    path.write_text(html.replace(in_page, f'<script src="{PLOTLY.as_uri()}"></script>'))


@contextmanager
def checked_page(context, path):
    """Open a file without plotly in it, and check at the end that the page wrote no message."""
    share_plotly(path)
    opened = open_page(context, path)
    yield opened.page
    opened.page.close()
    assert opened.messages == []


def wait_for_frame(page, number):
    """Wait until the player shows a frame."""
    # A function is evaluated at every frame of the screen, a selector only twice a second.
    page.wait_for_function(
        "n => document.getElementById('player').dataset.shown === n", arg=str(number)
    )


def pane_image(page, pane):
    """Return what a pane shows, without its border, which may be covered by the focus ring."""
    content = page.locator("#panes canvas").nth(pane).screenshot()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return image.crop((8, 8, image.width - 8, image.height - 8))


def shown_numbers(page):
    """Return the numbers of the stamped frames in the pixels of the first two panes, from one screenshot."""
    whole = page.locator("#panes")
    box = whole.bounding_box()
    panes = [page.locator("#panes canvas").nth(pane).bounding_box() for pane in (0, 1)]
    image = Image.open(io.BytesIO(whole.screenshot())).convert("RGB")
    left, right = (
        image.getpixel(
            (pane["x"] + pane["width"] / 2 - box["x"], pane["y"] + pane["height"] / 2 - box["y"])
        )[0]
        for pane in panes
    )
    return number_of(left), number_of(right)


def shown_number(page, pane=0):
    """Return the number of the stamped frame in the pixels of a pane."""
    image = pane_image(page, pane)
    return number_of(image.getpixel((image.width // 2, image.height // 2))[0])


def stable_box(page, selector):
    """Return the bounding box of an element after scrolling it into view."""
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def evaluate(page, selector, expression):
    """Return the value of a JavaScript function of the first matching element."""
    return page.locator(selector).first.evaluate(expression)


def chart(page, title):
    """Return the figure of a chart, which is drawn once it is scrolled into view."""
    figure = page.locator("#charts figure").filter(
        has=page.get_by_role("heading", name=title, exact=True)
    )
    figure.scroll_into_view_if_needed()
    is_drawn = (
        "title => cards.some((card) => card.chart.title === title && card.isNear && !isStale(card))"
    )
    page.wait_for_function(is_drawn, arg=title)
    figure.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
    return figure


def drawn(page, title):
    """Return what plotly draws: `names` of curves with their `values`, `dashes`, and `colours`; `x` and `y` axes."""
    return (
        chart(page, title)
        .locator(".plot")
        .evaluate(
            """plot => {
            const curves = plot.data.filter(({ name, hoverinfo }) => name !== undefined && hoverinfo !== "skip");
            return {
                names: curves.map(({ name }) => name),
                values: curves.map(({ y }) => y),
                dashes: curves.map(({ line }) => line?.dash),
                colours: curves.map(({ line }) => line?.color),
                modes: curves.map(({ mode }) => mode),
                x: plot.layout.xaxis.range,
                y: plot.layout.yaxis,
            };
        }"""
        )
    )
