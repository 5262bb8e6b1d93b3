"""`each` of made_cases.py: no case is left out in silence."""

from __future__ import annotations

import pytest

from made_cases import each


def test_a_case_that_is_skipped_is_named_when_all_others_have_passed() -> None:
    ran: list[int] = []

    @each("number", [1, 2, 3])
    def check(number: int) -> None:
        if number == 2:
            pytest.skip("it is even")
        ran.append(number)

    with pytest.raises(pytest.skip.Exception, match=r"1 of 3 cases; \{'number': 2\}: it is even"):
        check()
    assert ran == [1, 3]


def test_a_case_that_fails_is_told_before_one_that_is_skipped() -> None:
    @each("number", [1, 2])
    def check(number: int) -> None:
        if number == 1:
            pytest.skip("it is odd")
        raise ValueError(number)

    with pytest.raises(BaseExceptionGroup, match="1 of 2 cases"):
        check()
