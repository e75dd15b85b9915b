"""The report as one page of HTML that needs nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import jinja2

from attnbench.report.tables import Table
from attnbench.report.wording import distinct

Sections = Sequence[tuple[str, Sequence[Table]]]


def render_page(
    sections: Sections,
    pictures: Sequence[tuple[str, bytes]],
    facts: Mapping[str, str],
    machines: Mapping[str, Mapping[str, str]],
    skipped: Sequence[str],
) -> str:
    """Tables that sort on a click, figures, and where the figures come from.

    Args:
        sections: heading and tables of each section.
        pictures: caption and PNG of each figure, embedded.
        facts: facts of the records as a whole.
        machines: heading and facts of each environment.
        skipped: sentences on what was not drawn or was set aside.

    """
    loader = jinja2.PackageLoader("attnbench", "report")
    settings = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    figures = [(caption, base64.b64encode(image).decode("ascii")) for caption, image in pictures]
    legends = [distinct(line for table in tables for line in table.legend) for _, tables in sections]
    template = settings.get_template("page.html.jinja")
    return (
        template.render(
            sections=sections,
            legends=legends,
            figures=figures,
            facts=facts,
            machines=machines,
            skipped=skipped,
        )
        + "\n"
    )
