"""The run as a picture: small bar charts in SVG, a panel for each row, a bar for each server."""

from dataclasses import dataclass
from statistics import median
from xml.etree import ElementTree as Xml

from bench.figures import failures, foreign_cores, middle, values
from bench.report import BUSY_CORES, number
from bench.rows import MIRROR, TWO_MIRRORS, all_rows
from bench.run import Run

COLUMNS = 3
PANEL_WIDTH = 320
MARGIN = 16
TITLE_HEIGHT = 40
BAR_HEIGHT = 16
NAME_WIDTH = 104
VALUE_WIDTH = 58
TEXT_RISE = 4  # from the foot of a bar's line to that of its letters
HEADING_HEIGHT = 44
MARKED = (MIRROR, TWO_MIRRORS)
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #1f2328; }
.heading { font-size: 15px; font-weight: 600; }
.title { font-weight: 600; }
.note { fill: #59636e; }
.fails { fill: #b42318; }
.page { fill: #ffffff; }
.bar { fill: #a8b3bf; }
.ours { fill: #1a6fd4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9aa4af; }
  .fails { fill: #ff8a80; }
  .page { fill: #14181e; }
  .bar { fill: #56616d; }
  .ours { fill: #5aa2ff; }
}
"""


@dataclass(frozen=True)
class Bar:
    """`value` None: the server was not measured or, if it `fails`, never did it."""

    name: str
    value: float | None
    fails: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    more_is_better: bool
    bars: tuple[Bar, ...]


def panels(run: Run) -> list[Panel]:
    """Medians; who failed in any round fails."""
    return [
        Panel(
            row.title,
            row.unit,
            row.more_is_better,
            tuple(
                Bar(name, middle(values(run, row, name)), bool(failures(run, row, name)))
                for name in run.servers
            ),
        )
        for row in all_rows(run.scale)
    ]


def heading(run: Run) -> str:
    """Says as well when the machine had other things to do."""
    told = f"mirror {run.versions.get(MIRROR, '')} beside other pull-through caches"
    foreign = median(foreign_cores(run))
    return f"{told}, others using {foreign:.1f} cores" if foreign > BUSY_CORES else told


def svg(shown: list[Panel], heading: str) -> str:
    """A drawing on a ground of its own, light or dark as the reader's system is."""
    rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    width = COLUMNS * (PANEL_WIDTH + MARGIN) + MARGIN
    height = HEADING_HEIGHT + sum(_height(row) for row in rows)
    root = _root(width, height, heading, _description(shown))
    top = HEADING_HEIGHT
    for row in rows:
        for column, panel in enumerate(row):
            left = MARGIN + column * (PANEL_WIDTH + MARGIN)
            place = {"transform": f"translate({left} {top})"}
            _draw(Xml.SubElement(root, "g", place), panel)
        top += _height(row)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode") + "\n"


def _height(row: list[Panel]) -> int:
    return TITLE_HEIGHT + BAR_HEIGHT * max(len(panel.bars) for panel in row) + MARGIN


def _root(width: int, height: int, heading: str, description: str) -> Xml.Element:
    root = Xml.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-labelledby": "title desc",
        },
    )
    Xml.SubElement(root, "title", {"id": "title"}).text = heading
    Xml.SubElement(root, "desc", {"id": "desc"}).text = description
    Xml.SubElement(root, "style").text = STYLE
    ground = {"class": "page", "width": str(width), "height": str(height), "rx": "8"}
    Xml.SubElement(root, "rect", ground)
    _text(root, MARGIN, 28, heading, "heading")
    return root


def _draw(group: Xml.Element, panel: Panel) -> None:
    better = "more" if panel.more_is_better else "less"
    _text(group, 0, 14, panel.title, "title")
    _text(group, 0, 28, f"{panel.unit}, {better} is better", "note")
    longest = max((bar.value or 0.0 for bar in panel.bars), default=0.0)
    for index, bar in enumerate(panel.bars):
        _draw_bar(group, bar, TITLE_HEIGHT + index * BAR_HEIGHT, longest)


def _draw_bar(group: Xml.Element, bar: Bar, top: int, longest: float) -> None:
    foot = top + BAR_HEIGHT - TEXT_RISE
    _text(group, 0, foot, bar.name, "title" if bar.name in MARKED else "name")
    if bar.value is not None and longest:
        room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
        place = {
            "class": "ours" if bar.name in MARKED else "bar",
            "x": str(NAME_WIDTH),
            "y": str(top + 2),
            "width": f"{max(1.0, room * bar.value / longest):.1f}",
            "height": str(BAR_HEIGHT - 4),
        }
        Xml.SubElement(group, "rect", place)
    _text(group, PANEL_WIDTH, foot, _said(bar), "fails" if bar.fails else "value", "end")


def _said(bar: Bar) -> str:
    if bar.fails:
        return "fails"
    return "-" if bar.value is None else number(bar.value)


def _text(parent: Xml.Element, x: int, y: int, text: str, kind: str, anchor: str = "start") -> None:
    place = {"x": str(x), "y": str(y), "class": kind, "text-anchor": anchor}
    Xml.SubElement(parent, "text", place).text = text


def _description(shown: list[Panel]) -> str:
    return " ".join(
        f"{panel.title}, {panel.unit}: "
        + ", ".join(f"{bar.name} {_said(bar)}" for bar in panel.bars)
        + "."
        for panel in shown
    )
