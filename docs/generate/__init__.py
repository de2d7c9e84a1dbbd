"""What the documentation site gets from the code: references, the catalogue of rules, and pages from outside ``docs/``."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
