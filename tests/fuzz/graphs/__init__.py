"""Fuzzing of the optimizer with random graphs: ``python -m tests.fuzz graphs``.

:mod:`.generator` draws a valid model from :mod:`.scenes` and :mod:`.dressings`; :mod:`.checking` optimizes it and compares
the result with the original by its own means, :mod:`.reference` deciding where rounding could explain a difference;
:mod:`.campaign` does so many times in several processes; :mod:`.shrinking` makes a failure small. :mod:`.faults` plants
mistakes into the optimizer that have to be found.
"""

from tests.fuzz.graphs.case import Case, load, save
from tests.fuzz.graphs.generator import random_case, random_model

__all__ = ["Case", "load", "random_case", "random_model", "save"]
