"""Scenes change while the gateway runs, and what was paid before is still answered as it was."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.api.test_changes import put
from tests.faults.load import VERIFY
from tests.faults.planted import plant
from tests.running import eventually, verify_body
from tests.tills import PATH, Till, order, till_at


@pytest.fixture(scope="module")
async def till(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Till]:
    async with till_at(tmp_path_factory.mktemp("till"), postgres, template, **plant("looks_often")) as made:
        yield made


async def test_a_repeated_verify_has_its_answer_though_its_scene_is_gone(till: Till) -> None:
    card = await till.card()
    body = verify_body(card.number, card.identifier, "medical.window")
    scenes = (Path(till.gateway.environment["CONFIG_DIR"]) / "scenes.toml").read_text()
    first = await till.merchant.effect(VERIFY, body, key="seen")
    assert first[0] == 200

    async def new_ones_are(status: int) -> bool:
        return (await till.merchant.effect(VERIFY, body))[0] == status

    put(till.gateway, "scenes.toml", scenes.replace('[scenes."medical.window"]', '[scenes."medical.other"]'))
    await eventually(lambda: new_ones_are(422), 60, "the scene is gone")
    status, raw, headers = await till.merchant.effect(VERIFY, body, key="seen")
    assert (status, raw, headers["Idempotency-Replayed"]) == (200, first[1], "true")
    status, raw, _ = await till.merchant.effect(VERIFY, body, key="unseen")
    assert (status, json.loads(raw)["errors"][0]["field"]) == (422, "$.scene")
    put(till.gateway, "scenes.toml", scenes)
    await eventually(lambda: new_ones_are(200), 60, "it is there again")
    assert (await till.merchant.effect(VERIFY, body, key="unseen"))[0] == 200, "a refusal was not kept"


async def test_a_repeated_payment_has_its_answer_though_no_money_moves_there_now(till: Till) -> None:
    card = await till.card()
    body = order(card)
    scenes = (Path(till.gateway.environment["CONFIG_DIR"]) / "scenes.toml").read_text()
    head, block, rest = scenes.partition('[scenes."market.till"]')
    assert "money = true" in rest.partition("[scenes.")[0]
    first = await till.merchant.effect(PATH, body, key="before")
    assert first[0] == 200

    async def new_ones_are(status: int) -> bool:
        return (await till.merchant.effect(PATH, order(card)))[0] == status

    put(till.gateway, "scenes.toml", head + block + rest.replace("money = true\n", "", 1))
    await eventually(lambda: new_ones_are(422), 60, "the scene takes no money")
    status, raw, headers = await till.merchant.effect(PATH, body, key="before")
    assert (status, raw, headers["Idempotency-Replayed"]) == (200, first[1], "true")
    other = order(card)
    status, raw, _ = await till.merchant.effect(PATH, other, key="before")
    assert (status, json.loads(raw)["code"]) == (422, "idempotency_key_reused")
    status, raw, _ = await till.merchant.effect(PATH, other, key="meanwhile")
    assert (status, json.loads(raw)["errors"][0]["field"]) == (422, "$.scene")

    put(till.gateway, "scenes.toml", scenes)
    await eventually(lambda: new_ones_are(200), 60, "it takes money again")
    assert (await till.merchant.effect(PATH, other, key="meanwhile"))[0] == 200, "a refusal was not kept"
