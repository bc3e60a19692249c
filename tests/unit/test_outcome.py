"""What is kept of an error: enough to find it, nothing that cannot be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.outcome import MESSAGE_CAP, STACK_CAP, Failure, clean


def caught(error: BaseException) -> Failure:
    secret_local = "hunter2 in a local variable"
    try:
        if secret_local:
            raise error
    except BaseException as raised:  # noqa: BLE001
        return Failure.of(raised)
    raise AssertionError("nothing was raised")


@given(st.text(st.characters()), st.integers(0, 300))
def test_whatever_the_text_it_can_be_encoded_and_is_capped(text: str, cap: int) -> None:
    kept = clean(text, cap)
    kept.encode("utf-8")
    assert len(kept) == min(len(text), cap)


def test_lone_surrogates_are_replaced_everywhere() -> None:
    failure = caught(ValueError("a\ud800b"))
    assert failure.message == "a?b"
    assert failure.stack is not None
    (failure.message + failure.stack).encode("utf-8")


def test_message_and_stack_are_capped_and_the_stack_keeps_its_end() -> None:
    failure = caught(ValueError("x" * 100_000 + " the end"))
    assert len(failure.message) == MESSAGE_CAP
    assert failure.stack is not None
    assert len(failure.stack) == STACK_CAP
    assert failure.stack.rstrip().endswith("the end")


def test_no_local_variable_is_kept() -> None:
    failure = caught(ValueError("wrong"))
    assert failure.stack is not None
    assert "hunter2" not in failure.stack
    assert "in caught" in failure.stack


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_whose_message_fails_is_told_all_the_same() -> None:
    failure = caught(Mute())
    assert failure.kind.endswith("test_outcome.Mute")
    assert failure.message == "(its message cannot be shown: RuntimeError)"


def test_the_fingerprint_is_of_kind_and_place_and_not_of_the_message() -> None:
    assert caught(ValueError("one")).fingerprint == caught(ValueError("two")).fingerprint
    assert caught(ValueError("one")).fingerprint != caught(KeyError("one")).fingerprint
    with pytest.raises(ValueError, match="invalid literal") as elsewhere:
        int("one")
    assert Failure.of(elsewhere.value).fingerprint != caught(ValueError("one")).fingerprint


@pytest.mark.parametrize(("error", "kind"), [(ValueError(), "ValueError"), (SystemExit(3), "SystemExit")])
def test_builtins_go_by_their_short_names(error: BaseException, kind: str) -> None:
    assert caught(error).kind == kind
