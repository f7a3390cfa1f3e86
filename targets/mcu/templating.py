"""Text made from the templates in this package."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("tbn_compile.targets.mcu"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701 - the results are C and build files, not HTML
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Fill in a template, named by its path below `templates/`."""
    return _ENVIRONMENT.get_template(template).render(values)


def template_names(folder: str) -> list[str]:
    """The paths of all templates in one folder below `templates/`, relative to it."""
    prefix = f"{folder}/"
    names = _ENVIRONMENT.list_templates(filter_func=lambda name: name.startswith(prefix))
    return [name.removeprefix(prefix) for name in names]
