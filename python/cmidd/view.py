"""How stored images become the images that networks see.

Most methods store what networks see. One that stores more in an image than one network input (IDC
packs four) names a view: a function of images and labels that is differentiable in the images. Its
name and settings stand in the record of the set, so that whoever uses the set sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

ViewFunction = Callable[..., tuple[Tensor, Tensor]]
"""Of images (N, ...), labels (N,) or (N, C), and settings by name: those that networks see."""

VIEWS: dict[str, ViewFunction] = {}


def register_view(name: str, function: ViewFunction) -> None:
    """Add a view that sets can name."""
    if VIEWS.setdefault(name, function) is not function:
        raise ValueError(f"name: a view {name} exists already; expected another name")


@dataclass(frozen=True)
class View:
    """A registered view with its settings, which are what JSON can hold."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What networks see of stored images, and its labels."""
        return VIEWS[self.name](images, labels, **self.settings)

    def as_record(self) -> dict[str, Any]:
        """For the record of a set."""
        return {"name": self.name, "settings": dict(self.settings)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> View | None:
        """The view that the record of a set names; None: networks see the images as they are."""
        about = record.get("view")
        if about is None:
            return None
        if not isinstance(about, dict) or not isinstance(about.get("settings"), dict):
            raise ValueError(f"expected a view with a name and settings, got {about!r}")
        if about.get("name") not in VIEWS:
            raise ValueError(
                f"expected a view of {', '.join(VIEWS) or '(none is registered)'}, got "
                f"{about.get('name')!r}; import the module of the method that made the set"
            )
        return cls(about["name"], about["settings"])
