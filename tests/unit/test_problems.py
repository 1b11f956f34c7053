"""Problem documents, as far as no contract test sees them."""

import pytest

from gateway.api.problems import problem_reply
from gateway.domain.errors import PROBLEMS


def retry_after(code: str, told: dict[str, str] | None = None) -> str | None:
    return problem_reply(code, "", (), "r-1", told or {}).headers.get("Retry-After")


@pytest.mark.parametrize("code", [code for code, (status, _) in PROBLEMS.items() if status == 503])
def test_those_who_are_refused_together_are_to_come_again_at_different_times(code: str) -> None:
    assert {retry_after(code) for _ in range(200)} == {"1", "2", "3"}
    assert retry_after(code, {"Retry-After": "7"}) == "7"


@pytest.mark.parametrize("code", [code for code, (status, _) in PROBLEMS.items() if status != 503])
def test_no_other_problem_invites_to_come_again_by_itself(code: str) -> None:
    assert retry_after(code) is None
    assert retry_after(code, {"Retry-After": "7"}) == "7"
