"""Fields of options as the reference shows them: with their default, not with the call that checks.

ipc: int = option(10, least=1)    is shown as    ipc: int = 10
"""

from __future__ import annotations

from typing import Any

from griffe import Attribute, ExprCall, ExprKeyword, Extension


class OptionDefaults(Extension):
    """Puts the first argument of `option` in the place of the call."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Change the value of a field before the dataclass is made of it."""
        value = attr.value
        if isinstance(value, ExprCall) and value.canonical_name == "option":
            given = [each for each in value.arguments if not isinstance(each, ExprKeyword)]
            attr.value = given[0] if given else None
