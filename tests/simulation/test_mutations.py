"""The simulation bites: with a defect in the core, some seed among few objects to it."""

import re

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.run import first_caught

SEEDS = 150


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_defect_is_caught(name: str) -> None:
    mutation = MUTATIONS[name]
    with mutation.applied():
        report = first_caught(SEEDS, mutation.only)
    assert report is not None, f"{SEEDS} seeds passed with a core that {name.replace('_', ' ')}"
    assert re.search(mutation.objection, "\n".join(report.violations)), report.violations


def test_a_core_without_a_defect_passes_the_seeds_that_catch_them() -> None:
    assert first_caught(20) is None
