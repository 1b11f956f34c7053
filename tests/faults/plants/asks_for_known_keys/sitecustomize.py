"""The platform is asked whether or not the Idempotency-Key has its answer."""

from typing import Any

from gateway.flows import ask_ecard

complete = ask_ecard.AskEcard.complete


async def ask_always(self: Any, shown: Any, presentation: Any, key: Any = None) -> Any:
    return await complete(self, shown, presentation)


setattr(ask_ecard.AskEcard, "complete", ask_always)  # noqa: B010
