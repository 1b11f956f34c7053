"""Who may do what: every operation x every caller of the sandbox x its own and another's reference."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.api.routes import ROUTES, Route
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import add_card, drop_database, make_database, start_gateway
from tests.faults.planted import plant
from tests.registry import CARDS
from tests.returns import line, ndjson
from tests.running import ASSERTION_TYPE, Client, Raw, Running, eventually, request, send_raw, verify_body
from tests.signing import Signing, signed_headers

# api.md, The sandbox; a scene where the caller may verify
CALLERS = {
    "demo-merchant": ("cards:verify payments:write points:read", "parking.exit"),
    "demo-bank": ("cards:verify usage:write cards:loss cards:issue", "bank.counter"),
    "demo-transit": ("cards:verify transit:read transit:write", "transit.bus"),
    "demo-talent": ("cards:verify talent:check", "talent.service"),
    "demo-kiosk": ("cards:verify cards:loss points:read points:write", "kiosk.service"),
    "demo-bureau": ("usage:read indicators:read cards:loss cards:issue", "gov.window"),
    "demo-region": ("cards:verify", "region.visit"),
    "demo-limited": ("cards:verify", "parking.exit"),
}
SIGNERS = {"demo-merchant", "demo-bank", "demo-kiosk", "demo-bureau"}
REPORTS = "/v1/cards/loss-reports"
SCOPES = {"/v1/cards/verify": "cards:verify", REPORTS: "cards:loss", "/v1/usage-events": "usage:read"}
SCOPES[REPORTS + "/{reference}/release"] = "cards:loss"
PAY, UNDO = "/v1/payments", ("/v1/payments/{reference}/reversals", "/v1/payments/{reference}/refunds")
SCOPES |= dict.fromkeys((PAY, *UNDO), "payments:write")
OPERATIONS = "/v1/operations/{reference}"
REDEEM, POINTS = "/v1/points/redemptions", "/v1/points/{card_ref}"
END = (REDEEM + "/{reference}/commit", REDEEM + "/{reference}/cancel")
SCOPES |= dict.fromkeys((REDEEM, *END), "points:write") | {POINTS: "points:read"}
VISIT, OPEN = "/v1/visits", "/v1/visits/{reference}/open"
SCOPES |= dict.fromkeys((VISIT, OPEN), "payments:write")
RETURN = "POST /v1/usage-events"
SCOPES[RETURN] = "usage:write"


def key_of(route: Route) -> str:
    """A path; of the one that has two operations, the second with its method."""
    named = f"{route.method} {route.path}"
    return named if named == RETURN else route.path


class World(NamedTuple):
    """What each caller has: its client, a handle of a card, and a report of its own."""

    clients: dict[str, Client]
    refs: dict[str, str]
    reports: dict[str, str]

    def other_than(self, name: str, those: dict[str, str]) -> str:
        return next(value for other, value in those.items() if other != name)


@asynccontextmanager
async def world_of(gateway: Running) -> AsyncIterator[World]:
    clients = {name: Client(gateway, name) for name in CALLERS}
    made = World(clients, {}, {})
    for name, (scopes, scene) in CALLERS.items():
        card = await add_card(gateway)
        if "cards:verify" in scopes.split():
            made.refs[name] = (await clients[name].verify(card.number, card.identifier, scene))["card_ref"]
        if "cards:loss" in scopes.split():
            made.reports[name] = (await clients[name].report_loss(card))["reference"]
    yield made
    for client in clients.values():
        await client.session.close()


async def send(world: World, name: str, method: str, path: str, body: object, signed_by: str | None = None) -> Raw:
    """With the caller's token; signed by itself if it can, or by another in its name."""
    client = world.clients[name]
    raw = b"" if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {await client.token()}", "Idempotency-Key": secrets.token_urlsafe(8)}
    signer = signed_by or (name if name in SIGNERS else None)
    if method == "POST" and signer is not None:
        signing, host = Signing.of(world.clients[signer].file), f"127.0.0.1:{client.gateway.port}"
        headers = signed_headers(signing, method, host, path, raw, headers["Authorization"])
    headers = {header.replace("-", "_").lower(): value for header, value in headers.items()}
    return await answered_to(client, request(method, path, raw, **headers))


async def answered_to(client: Client, raw: bytes) -> Raw:
    """A quota is waited for."""

    async def answered() -> Raw | None:
        answer = await send_raw(client.gateway.port, raw)
        return answer if answer.status != 429 else None

    found = await eventually(answered, 5, "the quota lets it through")
    assert found is not None
    return found


async def open_to_all(world: World, name: str, path: str, own: bool) -> str:
    answer = await send(world, name, "GET", path, None)
    return str(answer.status)


async def token(world: World, name: str, path: str, own: bool) -> str:
    """Its own token; and another's, asked for with its own key."""
    client = world.clients[name]
    other = next(known for known in CALLERS if known != name)
    claims = client.claims() if own else client.claims(iss=other, sub=other)
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE}
    form["client_assertion"] = client.assertion(claims)
    async with client.session.post(path, data=form) as answer:
        return str(answer.status)


async def verify(world: World, name: str, path: str, own: bool) -> str:
    card_ref = world.refs.get(name) if own else world.other_than(name, world.refs)
    body = verify_body(CARDS[0].number, CARDS[0].identifier, CALLERS[name][1])
    if card_ref is not None:
        body["presentation"] = {"type": "card_ref", "card_ref": card_ref}
    answer = await send(world, name, "POST", path, body)
    reason = json.loads(answer.body).get("reason")
    return f"{answer.status} {'known' if reason != 'unrecognised' else reason}" if reason else str(answer.status)


async def report(world: World, name: str, path: str, own: bool) -> str:
    card_ref = world.refs.get(name) if own else world.other_than(name, world.refs)
    card = await add_card(world.clients[name].gateway)
    body: dict[str, object] = {"kind": "temporary", "card_number": card.number, "id_number": card.id_number}
    if card_ref is not None:
        body = {"kind": "temporary", "presentation": {"type": "card_ref", "card_ref": card_ref}}
    answer = await send(world, name, "POST", path, body)
    side = json.loads(answer.body).get("social_security")
    return f"{answer.status} {side.get('reason', 'known')}" if side else str(answer.status)


async def release(world: World, name: str, path: str, own: bool) -> str:
    reference = world.reports.get(name) if own else world.other_than(name, world.reports)
    reference = reference or world.other_than(name, world.reports)
    return str((await send(world, name, "POST", path.replace("{reference}", reference), {})).status)


async def change_keys(world: World, name: str, path: str, own: bool) -> str:
    """Of what it may not know it takes nothing: 422 is past the door; another's signature is not."""
    signer = None if own else next(known for known in sorted(SIGNERS) if known != name)
    return str((await send(world, name, "POST", path, {"colour": "red"}, signer)).status)


async def pay(world: World, name: str, path: str, own: bool) -> str:
    """Past the door; no bank is connected here."""
    body = verify_body(CARDS[0].number, CARDS[0].identifier, CALLERS[name][1])
    body |= {"amount_fen": 1, "merchant_order_id": secrets.token_hex(8)}
    status = (await send(world, name, "POST", path, body)).status
    return "in" if status in (200, 503) else str(status)


async def visit(world: World, name: str, path: str, own: bool) -> str:
    """At its own terminal, whose lot is away; and at one of nobody's."""
    body = verify_body(CARDS[0].number, CARDS[0].identifier, "parking.entry")
    body["terminal_id"] = "P-0001" if own else "nowhere"
    return str((await send(world, name, "POST", path, body)).status)


async def open_exit(world: World, name: str, path: str, own: bool) -> str:
    """Of a reference that is no visit of anybody's."""
    reference = world.other_than(name, world.reports)
    path = path.replace("{reference}", reference)
    return str((await send(world, name, "POST", path, {"payment": reference})).status)


async def undo(world: World, name: str, path: str, own: bool) -> str:
    """Of a reference that is no payment of anybody's."""
    body = {"reason": "x"} | ({"amount_fen": 1} if path.endswith("refunds") else {})
    reference = world.other_than(name, world.reports)
    return str((await send(world, name, "POST", path.replace("{reference}", reference), body)).status)


async def redeem(world: World, name: str, path: str, own: bool) -> str:
    """At its own outlet (the kiosk's); and at one of another caller, or of nobody."""
    presentation = verify_body(CARDS[0].number, CARDS[0].identifier)["presentation"]
    body = {"presentation": presentation, "points": 80, "item": "towel-set"}
    body["outlet_id"] = "wuyuan-01" if own else "nowhere"
    return str((await send(world, name, "POST", path, body)).status)


async def end(world: World, name: str, path: str, own: bool) -> str:
    """Of a reservation that nobody made."""
    reference = world.other_than(name, world.reports)
    return str((await send(world, name, "POST", path.replace("{reference}", reference), {})).status)


async def points(world: World, name: str, path: str, own: bool) -> str:
    card_ref = world.refs.get(name) if own else None
    card_ref = card_ref or world.other_than(name, world.refs)
    return str((await send(world, name, "GET", path.replace("{card_ref}", card_ref), None)).status)


async def operation(world: World, name: str, path: str, own: bool) -> str:
    reference = world.reports.get(name) if own else None
    reference = reference or world.other_than(name, world.reports)
    return str((await send(world, name, "GET", path.replace("{reference}", reference), None)).status)


async def return_usage(world: World, name: str, path: str, own: bool) -> str:
    """Of a card by its reference; a bulk takes no key and no signature."""
    card_ref = world.refs.get(name, "none") if own else world.other_than(name, world.refs)
    use = line(card_number=None, card_identifier=None, card_ref=card_ref)
    headers = {"authorization": f"Bearer {await world.clients[name].token()}", "content_type": "application/x-ndjson"}
    raw = request("POST", path.removeprefix("POST "), ndjson([use]), **headers)
    answer = await answered_to(world.clients[name], raw)
    if answer.status != 200:
        return str(answer.status)
    return f"200 {'known' if json.loads(answer.body)['created'] else json.loads(answer.body)['rejected'][0]['code']}"


async def feed(world: World, name: str, path: str, own: bool) -> str:
    return str((await send(world, name, "GET", f"{path}?limit=1", None)).status)


WAYS = {
    "/oauth2/token": token, "/.well-known/jwks.json": open_to_all, "/openapi.json": open_to_all, "/docs": open_to_all,
    "/v1/cards/verify": verify, REPORTS: report, REPORTS + "/{reference}/release": release,
    "/v1/callers/self/keys": change_keys, "/v1/usage-events": feed, RETURN: return_usage,
    PAY: pay, UNDO[0]: undo, UNDO[1]: undo, OPERATIONS: operation,
    VISIT: visit, OPEN: open_exit, REDEEM: redeem, END[0]: end, END[1]: end, POINTS: points,
}  # fmt: skip


OWN_OR_NOT = {
    VISIT: ("503", "422"), REDEEM: ("200", "422"), POINTS: ("200", "404"),
    REPORTS + "/{reference}/release": ("200", "404"),
}  # fmt: skip
"""The statuses of what is a caller's own, and of what is not."""


def expected(path: str, name: str, own: bool) -> str:
    """Written from the contract: nothing here asks the gateway's tables."""
    if path == "/oauth2/token":
        return "200" if own else "401"
    if path == "/v1/callers/self/keys":
        return "422" if own and name in SIGNERS else "401"
    if path == OPERATIONS:
        return "200" if own and "cards:loss" in CALLERS[name][0].split() else "404"
    if path not in SCOPES:
        return "200"
    if SCOPES[path] not in CALLERS[name][0].split():
        return "403"
    if path in ("/v1/cards/verify", REPORTS, RETURN):
        return "200 known" if own else "200 unrecognised"
    if path == PAY:
        return "in"
    if path in (*UNDO, *END, OPEN):
        return "404"
    return OWN_OR_NOT.get(path, ("200", "200"))[not own]


async def fill(world: World) -> tuple[int, list[str]]:
    """(cells, those that are wrong)."""
    wrong, cells = [], 0
    for route in ROUTES:
        for name in CALLERS:
            for own in (True, False):
                cells += 1
                key = key_of(route)
                found, wanted = await WAYS[key](world, name, key, own), expected(key, name, own)
                if found != wanted:
                    whose = "own" if own else "foreign"
                    wrong.append(f"{route.method} {route.path} {name} {whose}: {found}, not {wanted}")
    return cells, wrong


async def test_every_operation_for_every_caller_with_its_own_and_anothers_reference(gateway: Running) -> None:
    assert set(WAYS) == {key_of(route) for route in ROUTES}, "a new operation needs its line here"
    files = (gateway.data_dir / "sandbox" / "callers").glob("*.json")
    assert set(CALLERS) == {file.stem for file in files}
    async with world_of(gateway) as world:
        cells, wrong = await fill(world)
    print(f"\n{cells} cells, {len(wrong)} wrong")
    assert wrong == []
    assert cells == len(ROUTES) * len(CALLERS) * 2 >= 144


async def test_control_a_gateway_that_does_not_look_at_scopes_is_noticed(
    postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> None:
    database = await make_database(postgres, template)
    running = await start_gateway(tmp_path / "data", database, WORKERS="1", **plant("scope_unchecked"))
    try:
        async with world_of(running) as world:
            cells, wrong = await fill(world)
    finally:
        await running.stop()
        await drop_database(postgres, database)
    refused = sum(
        expected(key_of(route), name, own) == "403" for route in ROUTES for name in CALLERS for own in (True, False)
    )
    print(f"\n{len(wrong)} of {cells} cells wrong")
    assert len(wrong) == refused > 30
