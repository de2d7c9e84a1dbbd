"""One thread per process: the tests run side by side, and tiny tensors gain nothing from more.

Where CI is set, property-based tests draw the same examples in every run, so that a change is judged by what it changes;
everywhere else they draw new ones.
"""

import logging
import os

import pytest
from hypothesis import settings

import msconv_deploy  # noqa: F401 - the installed one, before a program that a test imports puts the checkout in front

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_log_level():
    """A verb that a test runs in this process sets the level of the log; the next test has its own."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
