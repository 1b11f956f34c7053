"""Callers and scenes change while the gateway runs (api.md, issue: within 60 s and without a restart)."""

import json
import shutil
from pathlib import Path

from gateway.sandbox.callers import write_callers
from gateway.settings import load
from tests.registry import CARDS
from tests.running import Client, Running, eventually, labelled, request, send_raw, verify_body

OK = CARDS[0]
PATH = "/v1/cards/verify"

NEW_CALLER = """
[callers.new-shop]
name = "新商户(合成)"
kind = "merchant"
scopes = ["cards:verify"]
algorithm = "ES256"
keys_file = "sandbox/callers/public/new-shop.json"
"""
NEW_SCENE = """
[scenes."pool.entry"]
name = "游泳馆入场"
field = "pool"
callers = ["merchant"]
"""


def prepare_change(running: Running) -> dict[str, str]:
    """callers.toml and scenes.toml with a new caller, whose keys are there, a disabled one and a new scene."""
    config = Path(running.environment["CONFIG_DIR"])
    callers = (config / "callers.toml").read_text() + NEW_CALLER
    kiosk = 'keys_file = "sandbox/callers/public/demo-kiosk.json"'
    assert kiosk in callers
    texts = {
        "callers.toml": callers.replace(kiosk, kiosk + "\nenabled = false"),
        "scenes.toml": (config / "scenes.toml").read_text() + NEW_SCENE,
    }
    future = running.data_dir / "future"
    shutil.copytree(config, future)
    for name, text in texts.items():
        (future / name).write_text(text)
    write_callers(load({"CONFIG_DIR": str(future), "DATA_DIR": str(running.data_dir), "PORT": str(running.port)}))
    return texts


def put(running: Running, name: str, text: str) -> None:
    """Replace a file of the configuration as an editor does: whole."""
    file = Path(running.environment["CONFIG_DIR"]) / name
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


PROCESSES = 3
"""That read the configuration: two workers that serve, and the one with the background loops."""


async def reloads(running: Running, result: str, count: int) -> None:
    """Wait until the directory of every process has noticed a change; the promise is 60 s, it takes about 5."""

    async def noticed() -> bool:
        return labelled(await running.metrics(), "yikatong_config_reloads_total").get(("directory", result), 0) >= count

    await eventually(noticed, 60, f"{count} configuration changes {result}")


async def refused_now(running: Running, value: float) -> bool:
    """Whether the metric of the alert says so of the directories of all processes."""
    return labelled(await running.metrics(), "yikatong_config_refused")[("directory",)] == value


async def answers_of(client: Client, scene: str) -> set[int]:
    """The statuses of a verify over twenty connections: both workers are among them."""
    sent = request(
        "POST", PATH, json.dumps(verify_body(OK.number, OK.identifier, scene)).encode(),
        authorization=f"Bearer {await client.token()}",
    )  # fmt: skip
    return {(await send_raw(client.gateway.port, sent)).status for _ in range(20)}


async def test_callers_and_scenes_change_without_a_restart_and_a_broken_change_changes_nothing(
    operated: Running,
) -> None:
    workers = {child.pid for child in operated.children("serve-worker")}
    changed = prepare_change(operated)
    async with Client(operated, "demo-kiosk") as kiosk, Client(operated, "new-shop") as new:
        assert await answers_of(kiosk, "library.loan") == {200}
        assert (await new.ask_token())[0] == 401
        for name, text in changed.items():
            put(operated, name, text)
        await reloads(operated, "taken", PROCESSES)
        assert await answers_of(new, "pool.entry") == {200}, "the new caller and the new scene"
        assert await answers_of(kiosk, "library.loan") == {401}, "a disabled caller's token is dead at once"
        assert (await kiosk.ask_token())[0] == 401

        put(operated, "callers.toml", changed["callers.toml"].replace('kind = "merchant"', 'kind = "mafia"', 1))
        await reloads(operated, "refused", PROCESSES)
        assert await refused_now(operated, 1)
        assert await answers_of(new, "pool.entry") == {200}
        assert await answers_of(kiosk, "library.loan") == {401}

        # it has to be whole again, or a worker that ends cannot be started anew
        put(operated, "callers.toml", changed["callers.toml"])
        await eventually(lambda: refused_now(operated, 0), 60, "no change refused")
    lines = [json.loads(line) for line in operated.log.splitlines()]
    told = [line for line in lines if line["event"] == "configuration change refused"]
    refused = [line for line in told if line["component"] == "directory"]
    assert len(refused) == PROCESSES and refused[0]["level"] == "error"
    assert any("callers.toml: callers.demo-merchant.kind" in mistake for mistake in refused[0]["mistakes"])
    assert {child.pid for child in operated.children("serve-worker")} == workers
