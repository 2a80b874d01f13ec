"""HTML of pages that work offline: the templates of this package, and how they write numbers and names."""

import re
from datetime import datetime, timezone
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from telecine import __version__
from telecine.report.chart_data import plotly_script


def render_page(template: str, **values: object) -> str:
    """Return a page as HTML, from a template of this package and its values."""
    made = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return (
        page_environment().get_template(template).render(version=__version__, made=made, **values)
    )


@cache  # it keeps the compiled templates
def page_environment() -> Environment:
    """Return the Jinja environment of all pages: it escapes values, and an unknown name in a template is an error."""
    loader = PackageLoader("telecine.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def asset(name: str) -> Markup:
        """Return a style sheet or a script of the package, which must not be escaped."""
        return Markup(loader.get_source(environment, name)[0])

    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["short"] = short
    environment.filters["even"] = even
    environment.filters["breakable"] = breakable
    environment.filters["below"] = below
    environment.globals["asset"] = asset
    environment.globals["plotly_script"] = plotly_script
    return environment


def short(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:.4g}"


def even(value: float) -> str:
    """Format a number for a column, with the same number of digits for values of similar size."""
    if abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.2f}"


def breakable(name: str) -> Markup:
    """Return a dotted name or a path that browsers may break after each of its parts."""
    parts = re.findall(r"[^._/]*[._/]+|[^._/]+", name)
    return Markup("<wbr>").join(parts)


def below(path: str, folder: str) -> str:
    """Return a path without the folder that it begins with."""
    prefix = folder.rstrip("/") + "/"
    return path.removeprefix(prefix)
