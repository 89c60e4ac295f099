"""What lies inside the memory of the methods that have one."""

from __future__ import annotations

from recollect.evaluation.memory.report import Panel
from recollect.evaluation.report.html import card, charts, heading, picture, plain_table, said


def panel(found: Panel) -> str:
    """A panel: drawings as SVG beside one another, pictures below, then the numbers."""
    cards = [card(drawing.caption, drawing.fact, drawing.image) for drawing in found.drawings if isinstance(drawing.image, str)]
    figures = "".join(picture(drawing.caption, drawing.image) for drawing in found.drawings if not isinstance(drawing.image, str))
    content = charts(cards, "wide" if found.wide else "")
    content += f'<div class="figures">{figures}</div>' if figures else ""
    content += plain_table(found.numbers) if found.numbers is not None else ""
    return f"{heading(found.title)}{said(found.about)}{content}"
