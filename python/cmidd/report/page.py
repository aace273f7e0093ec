"""HTML that needs nothing else: every element is built here, and text in it is escaped here.

A page allows itself inline styles and `data:` images and no other load, by its own content policy.
"""

from __future__ import annotations

import base64
import html as standard_html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #24292f; --faint: #5f6771;
  --line: #dfe3e8; --raised: #f5f7f9; --mark: #e3f0fb; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e3e7eb; --faint: #9aa4af;
  --line: #323941; --raised: #1d2228; --mark: #173349; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
.faint, small { color: var(--faint); }
small { font-size: .78em; white-space: nowrap; }
.warning { border-left: 4px solid #d55e00; padding-left: .6rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 9rem; }
td.best { background: var(--mark); font-weight: 700; }
td { white-space: nowrap; }
td small { font-weight: 400; }
.columns { display: grid; gap: 2rem 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.columns > * { min-width: 0; }
@media (min-width: 42rem) { .columns:has(> :nth-child(2)) .about { min-height: 3.1em; } }
img { max-width: 100%; height: auto; display: block; }
.grid { display: grid; grid-template-columns: fit-content(7rem) minmax(0, 1fr); gap: 3px .7rem;
  align-items: center; margin-top: .5rem; }
.grid span { font-size: .85rem; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0; padding: 0;
  list-style: none; font-size: .9rem; overflow-wrap: anywhere; }
.legend svg { margin-right: .4rem; vertical-align: middle; }
pre { background: var(--raised); padding: .7rem .9rem; border-radius: 6px; overflow-x: auto;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: .9em; white-space: nowrap; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_WITHOUT_END = {"img", "meta", "source"}


class Html(str):
    """Markup. Any other string is text."""


def text(content: object) -> Html:
    """What a page shows as `content`; markup stays as it is."""
    if isinstance(content, Html):
        return content
    # File names may hold bytes that are no UTF-8, which the page has to be.
    return Html(standard_html.escape(str(content).encode("utf-8", "replace").decode()))


def join(parts: Iterable[object]) -> Html:
    """Parts one after another."""
    return Html("".join(text(part) for part in parts))


def element(name: str, /, *parts: object, **attributes: object) -> Html:
    """One element; `class_` is its class, and `stroke_width` becomes stroke-width."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
    )
    end = "" if name in _WITHOUT_END else f"</{name}>"
    return Html(f"<{name}{written}>{join(parts)}{end}")


def digits(value: object, most: int = 3) -> object:
    """A number with `most` digits where it has more behind the point; all else as it is."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.{most}g}"
    return value


def paragraph(*parts: object, **attributes: object) -> Html:
    """A paragraph."""
    return element("p", *parts, **attributes)


def code(content: object) -> Html:
    """A command, which no line ends within."""
    return element("code", content)


def section(title: str, *parts: object) -> Html:
    """A part of the page under its heading."""
    return element("section", element("h2", title), *parts)


def heading(title: object, about: object) -> Html:
    """What stands over a picture or a list: its name and a line about it."""
    return join([element("h3", title), paragraph(about, class_="about faint")])


def columns(parts: Iterable[object]) -> Html:
    """Parts beside each other where the screen is wide enough."""
    return element("div", *(element("div", part) for part in parts), class_="columns")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Rows under a header; the first cell of a row names it, and a cell may be a whole `<td>`."""
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = [
        element("tr", element("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:]))
        for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="wide")


def _cell(cell: object) -> Html:
    if isinstance(cell, Html) and cell.startswith("<td"):
        return cell
    return element("td", cell)


def image(light: bytes, alt: str, width: int, dark: bytes | None = None) -> Html:
    """A PNG of which `width` pixels of the page are the size; `dark` is shown on dark pages."""
    shown = element("img", src=_data(light), alt=alt, width=width)
    if dark is None:
        return shown
    media = "(prefers-color-scheme: dark)"
    return element("picture", element("source", media=media, srcset=_data(dark)), shown)


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def page(title: str, *parts: object) -> str:
    """The whole page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", element("h1", title), *parts))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"
