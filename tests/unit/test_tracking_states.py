"""The picture of the states shows the table of moves, all of it and nothing else."""

import re
from pathlib import Path

from tracking.states import FINAL, INITIAL, MOVES, Status

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "states.md"


def edges_in(page: str) -> set[tuple[str, str]]:
    diagram = page.split("```mermaid")[1].split("```")[0]
    return set(re.findall(r"(\S+) --> (\S+)", diagram))


def test_the_diagram_shows_every_move() -> None:
    moves = {(str(state), str(following)) for state, targets in MOVES.items() for following in targets}
    ends = {("[*]", str(state)) for state in INITIAL} | {(str(state), "[*]") for state in FINAL}
    assert edges_in(PAGE.read_text()) == moves | ends


def test_the_page_explains_every_state() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) == set(Status)


def test_every_state_can_be_left_or_is_final_and_can_be_reached() -> None:
    assert set(MOVES) == set(Status)
    assert {state for state, targets in MOVES.items() if not targets} == {Status.COMPLETED}
    assert INITIAL.union(*MOVES.values()) == set(Status)
