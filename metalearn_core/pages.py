"""HTML pages that people read: one file each, which needs nothing from anywhere else."""

from pathlib import Path
from typing import Any

BASE = Path(__file__).parent


def render_page(template: Path, **values: Any) -> str:
    """Render a template below the package; it may extend `page.html.j2`, which brings the style. Values are escaped.

    Args:
        template: its file.
        values: what it names.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(BASE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template.relative_to(BASE).as_posix()).render(**values)
