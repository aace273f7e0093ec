"""What mkdocs does to the pages of the site beside its plugins.

A line such as `<!-- options of: distill dm -->` is replaced by the options of that command, as its
help has them. A link to a file of the repository that is no page, which works on a code host, is
replaced by its text. Nothing here imports torch.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))  # the package need not be installed

from cmidd.cli.flags import documented, flags_of
from cmidd.cli.help import entry
from cmidd.cli.parser import COMMANDS, about_method, groups_of_method

DOCS = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"^<!-- options of: (.+?) -->$", re.MULTILINE)
_LINK_UP = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)\)")
_SHORT_CODE = re.compile(r"<code>(?=[^<]{1,30}</code>)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the options of commands into a page, and take out links that leave the pages."""
    folder = (DOCS / page.file.src_path).parent

    def kept(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        leaves = target.exists() and not target.is_relative_to(DOCS)
        return link[1] if leaves else link[0]

    return _LINK_UP.sub(kept, _MARK.sub(lambda found: command_in_markdown(found[1]), markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Name short pieces of code, which the style sheet keeps on one line."""
    return _SHORT_CODE.sub('<code class="short">', content)


def command_in_markdown(command: str) -> str:
    """What a command is for, and its options, group by group."""
    method = command.removeprefix("distill ")
    if method != command:
        about, groups = about_method(method), groups_of_method(method)
    else:
        about, groups = COMMANDS[command].description, COMMANDS[command].groups
    parts = [html.escape(about.strip(), quote=False)]
    for group in groups:
        parts.append(f"**{documented(group)[0]}**")
        for flag in flags_of([group]).values():
            name, text = entry(flag)
            parts.append(f"`{name}`\n:   {html.escape(text, quote=False)}")
    return "\n\n".join(parts)
