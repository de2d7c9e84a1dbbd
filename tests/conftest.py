"""One thread per process: the tests run side by side, and tiny tensors gain nothing from more.

Where CI is set, property-based tests draw the same examples in every run, so that a change is judged by what it changes;
everywhere else they draw new ones.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
