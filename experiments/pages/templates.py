"""Templates of pages, and how they write numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from experiments.app.words import duration
from experiments.pages.words import listed
from highway_jax.plotting import number


def template(path: Path, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template, and filters that it alone has; all text that goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=".html" in path.name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": duration,
        "listed": listed,
        "number": number,
        "percent": _percent,
        "times": _times,
        **filters,
    }
    environment.tests["finite"] = math.isfinite
    return environment.get_template(path.name)


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _times(ratio: float, whole: float = 100) -> str:
    """Such as 2.5, 14.6, 2,676: without a decimal from `whole` on."""
    return f"{ratio:,.{0 if ratio >= whole else 1}f}"
