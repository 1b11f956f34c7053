"""POST /v1/cards/verify against a running gateway."""

import pytest

from tests.registry import CARDS, TestCard, identifier
from tests.running import Client, verify_body


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.reason}-{card.number}")
async def test_every_state_has_its_reason(merchant: Client, card: TestCard) -> None:
    answer = await merchant.verify(card.number, card.identifier)
    assert answer["reason"] == card.reason
    assert answer["medium"] == ("third_gen" if card.generation == 3 else "second_gen")
    assert answer["region"] == card.region
    assert ("holder" in answer) == ("benefits" in answer) == (card.reason == "ok")
    assert answer["card_ref"] and answer["event_id"] and answer["status_as_of"].endswith("+08:00")
