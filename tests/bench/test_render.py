from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from bench.harness.records import RESULTS
from bench.render import PAGES, write_pages


def links(page: Path) -> list[str]:
    """Where links and pictures of a page lead."""
    return re.findall(r"\]\(([^)]+)\)", page.read_text())


def test_pictures_stand_beside_the_page_that_shows_them(tmp_path: Path) -> None:
    results, pages = tmp_path / "results", tmp_path / "pages"
    results.mkdir()
    shutil.copy(RESULTS / "accuracy.json", results)
    index, page = write_pages(results, pages)
    assert links(page) == ["accuracy.png"]
    assert (pages / "accuracy.png").exists()
    assert links(index) == ["accuracy.md"]
    assert sorted(path.name for path in results.iterdir()) == ["accuracy.csv", "accuracy.json"]


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_written_pages_stay_among_them(page: Path) -> None:
    for link in links(page):
        assert "/" not in link
        assert (PAGES / link).is_file()
