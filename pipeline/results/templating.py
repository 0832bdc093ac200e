"""The settings under which every table and report is rendered."""

from __future__ import annotations

import jinja2


def environment(package: str, html: bool) -> jinja2.Environment:
    """Templates of a package: a name that is not given is an error, and HTML is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
