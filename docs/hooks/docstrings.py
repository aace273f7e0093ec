"""What the reference makes of the code beside what mkdocstrings does.

`ipc: int = option(10, least=1)` is shown with its default, as `ipc: int = 10`, and a section
`Example:` holds code as `Examples:` does.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, ExprCall, ExprKeyword, Extension, Object


class Shown(Extension):
    """Changes what was read before it is shown."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Put the first argument of `option` in the place of the call."""
        value = attr.value
        if isinstance(value, ExprCall) and value.canonical_name == "option":
            given = [each for each in value.arguments if not isinstance(each, ExprKeyword)]
            attr.value = given[0] if given else None

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Name sections of examples as the reader of docstrings knows them."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)
