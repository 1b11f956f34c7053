"""The platform of e-cards is waited for as long as it takes."""

from typing import Any

from gateway.flows import ask_ecard

init = ask_ecard.AskEcard.__init__


def patient(self: Any, pool: Any, index: Any, ask: Any, deadline_s: float) -> None:
    init(self, pool, index, ask, deadline_s + 60)


setattr(ask_ecard.AskEcard, "__init__", patient)  # noqa: B010
