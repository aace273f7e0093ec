"""Values of options from words and from YAML, by the types of their fields."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

_EXPECTED: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


class Kind(NamedTuple):
    """The type of an option."""

    item: type
    is_list: bool = False
    may_be_none: bool = False

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """Of a field's type: one of these, or None, or a tuple of any number of them."""
        if hint in _EXPECTED:
            return cls(hint)
        if get_origin(hint) is tuple:
            item, rest = get_args(hint)
            if rest is Ellipsis and item in _EXPECTED:
                return cls(item, is_list=True)
        inner = [each for each in get_args(hint) if each is not type(None)]
        if len(inner) == 1:
            return cls.of(inner[0])._replace(may_be_none=True)
        raise TypeError(f"expected {', '.join(t.__name__ for t in _EXPECTED)}, got {hint}")

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        return _EXPECTED[self.item]

    def from_word(self, word: str) -> Any:
        """The value, or an item of the list, that a word stands for."""
        try:
            value = self.item(word)
        except ValueError:
            raise self._error(word) from None
        if not word or (self.item is float and not math.isfinite(value)):
            raise self._error(word)
        return value

    def from_yaml(self, value: Any) -> Any:
        """The value that YAML's stands for: a word too, and one value for a list of one."""
        if value is None and self.may_be_none:
            return None
        if self.is_list:
            values = value if isinstance(value, list) else [value]
            return tuple(Kind(self.item).from_yaml(each) for each in values)
        if type(value) is self.item:
            return self.from_word(str(value)) if self.item is float else value
        if isinstance(value, str) and self.item is not bool:
            return self.from_word(value)  # YAML takes 1e-3 for text
        if type(value) is int and self.item is float:
            return float(value)
        raise self._error(value)

    def _error(self, got: object) -> ValueError:
        found = "nothing" if got in ("", None) else got
        return ValueError(f"expected {self.expected}, got {found}")
