"""The pages for people name files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docker" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("deploy/", "docker/", "docs/", "service/", "trainer/", "tests/", "benchmarks/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for span in re.findall(r"`([^`\n]+)`", text):
        for word in span.split():
            if word.startswith(FOLDERS):
                path = word.split(":")[0].rstrip(",;")
                assert (ROOT / path).exists(), path
