"""Networks and files that the relations share; exported and read once."""

from __future__ import annotations

import pytest

from tests.metamorphic.cases import exported_networks, zoo_cases


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    pytest.importorskip("torch", reason="the networks are exported by torch: pip install 'msconv-deploy[torch]'")
    return exported_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def zoo():
    cases = zoo_cases()
    if not cases:
        pytest.skip("the folder shared/zoo is not beside the checkout")
    return cases
