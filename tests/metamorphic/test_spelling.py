"""Names, order and annotations say nothing: however a model is spelled, the same is found and the same is made of it.

Which equality is meant stands in each relation: bytes (odd names, annotations of what stays), or the same expressions of
the same constants with the same sites (everything else).
"""

from __future__ import annotations

from random import Random

import pytest

from tests.metamorphic import relations
from tests.metamorphic.cases import random_cases
from tests.surgery.random_graphs import defined_by_onnxruntime

pytestmark = defined_by_onnxruntime
RELATIONS = [
    relations.odd_names_change_nothing,
    relations.shuffled_names_change_nothing,
    relations.numbered_names_change_nothing,
    relations.names_of_nodes_change_nothing,
    relations.order_of_nodes_changes_nothing,
    relations.order_of_initializers_changes_nothing,
    relations.constants_may_be_nodes,
    relations.annotations_change_nothing_and_stay,
    relations.value_infos_change_nothing,
    relations.the_rest_is_untouched,
]
named = pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.__name__)


@pytest.fixture(scope="module")
def drawn():
    return random_cases()


@named
def test_random_graphs(relation, drawn):
    for number, case in enumerate(drawn):
        relation(case, Random(number))
    assert sum(case.result.changed for case in drawn) > len(drawn) // 2, "hardly anything is rewritten"


@named
def test_networks(relation, networks):
    for case in networks.values():
        relation(case, Random(case.label))
        assert case.result.changed, case.label


@named
def test_files_of_other_exporters(relation, zoo):
    for case in zoo.values():
        relation(case, Random(case.label))
        assert case.result.changed, case.label
