"""Bring the tables of the documentation up to date with benchmarks/results.

    python benchmarks/include_results.py

README.md and docs/*.md hold copies of result files between ``<!-- benchmarks/results/NAME.md -->`` and ``<!-- end -->``;
each copy is replaced by the file as it is. A test says when they differ.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- (benchmarks/results/\S+\.md) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may hold copies."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def included(text: str) -> str:
    """A page with every copy replaced by the file that it is a copy of."""
    return BLOCK.sub(lambda m: f"<!-- {m[1]} -->\n{(ROOT / m[1]).read_text()}<!-- end -->", text)


def main() -> int:
    for page in pages():
        before = page.read_text()
        after = included(before)
        if after != before:
            page.write_text(after)
            print(f"{page.relative_to(ROOT)}: brought up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
