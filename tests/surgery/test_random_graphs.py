"""Random graphs: the optimized model always agrees with the original, or the site is refused with a reason.

300 examples by default; ``MSCONV_EXAMPLES=5000`` draws more.
"""

import os
from random import Random

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msconv_deploy.surgery.rules import tile_concat_conv
from tests.surgery.graphs import compare, feeds, optimized, rewritten, session, spelled
from tests.surgery.random_graphs import defined_by_onnxruntime, random_case

pytestmark = defined_by_onnxruntime
EXAMPLES = int(os.environ.get("MSCONV_EXAMPLES", "300"))
BLOCKS = 10


def check(case) -> tuple[int, int]:
    """(contractions, rewritten ones) of a random case; models that ONNX Runtime itself cannot load do not count."""
    try:
        session(case.model)
    except Exception:
        return 0, 0
    result = optimized(case.model, case.sizes)
    for site in result.sites:
        assert site.decision == "rewritten" or site.reason, site
    assert all(miss.reason for miss in result.near_misses)
    return sum(site.rule == tile_concat_conv.ID for site in result.sites), rewritten(result)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_seeded_graphs_agree(block):
    """The same graphs on every run, so that a change that breaks one of them is noticed when it is made."""
    per_block = max(1, EXAMPLES // BLOCKS)
    found = [check(random_case(Random(seed))) for seed in range(block * per_block, (block + 1) * per_block)]
    sites, done = (sum(column) for column in zip(*found, strict=True))
    assert sites > per_block // 3, "the generator hardly makes sites"
    assert done > 0.8 * sites, "most sites are refused"


@settings(
    max_examples=max(10, EXAMPLES // 3),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(st.randoms(use_true_random=False))
def test_drawn_graphs_agree(rng):
    """New graphs on every run; hypothesis shrinks what fails."""
    check(random_case(rng))


@pytest.mark.parametrize("block", range(3))
def test_every_lowering_agrees(block):
    """Not only the one that the estimate chooses."""
    per_block = max(1, EXAMPLES // 6)
    compared = 0
    for seed in range(10**6 + block * per_block, 10**6 + (block + 1) * per_block):
        case = random_case(Random(seed))
        try:
            original = session(case.model)
        except Exception:
            continue
        for choice in (0, 1, 2):
            result = spelled(case.model, lambda names, i=choice: names[i] if i < len(names) else None)
            if result is None:
                continue
            onnx.checker.check_model(result)
            rewrite = session(result)
            for number, assignment in enumerate(case.sizes):
                given_inputs = feeds(case.model, assignment, number)
                try:
                    expected = original.run(None, given_inputs)
                except Exception:
                    continue
                compare(expected, rewrite.run(None, given_inputs), (seed, choice, assignment))
                compared += 1
    assert compared > per_block
