"""The ordinary way to do the gateway's job: FastAPI, pydantic, SQLAlchemy's async ORM on asyncpg, PyJWT.

Per request: decode the token, one SELECT by card number, decide, one INSERT, a durable commit, a JSON answer with the
gateway's fields. Names and birth dates are plain text here: nothing is sealed, no index is blind.

    DATABASE_URL=postgresql:///peer?host=…&user=… PEER_ISSUER=… PEER_JWKS=jwks.json \
        python -m loadtests.peers.ordinary --port 8082
    DATABASE_URL=… python -m loadtests.peers.ordinary --load cards.ndjson --cards 415000
"""

import argparse
import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import asyncpg
import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CHINA = dt.timezone(dt.timedelta(hours=8))
REASONS = {
    0: "not_activated", 1: "ok", 2: "lost_formal", 3: "locked", 4: "lost_temporary", 6: "void", 9: "cancelled",
}  # fmt: skip
SCENES = {"parking.entry", "parking.exit", "hotel.checkin", "dining.till", "market.till", "library.loan"}
MEDIA = {2: "second_gen", 3: "third_gen"}
REF_KEY = b"a peer's key for card references"


class Base(DeclarativeBase):
    pass


class Card(Base):
    __tablename__ = "peer_card"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    card_number: Mapped[str] = mapped_column(unique=True, index=True)
    card_identifier: Mapped[str]
    status: Mapped[int]
    valid_until: Mapped[dt.date]
    region: Mapped[str]
    generation: Mapped[int]
    holder_name: Mapped[str]
    birth_date: Mapped[dt.date]


class Event(Base):
    __tablename__ = "peer_event"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    card_id: Mapped[uuid.UUID | None]
    caller: Mapped[str]
    scene: Mapped[str]
    terminal_id: Mapped[str]
    occurred_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    verdict: Mapped[str]
    reason: Mapped[str]


class ChipCard(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["chip_card"]
    card_number: str = Field(pattern="^[A-Z0-9]{2}[0-9]{7}$")
    card_identifier: str = Field(pattern="^[0-9A-Fa-f]{32}$")
    interface: Literal["contact", "contactless"] | None = None


class VerifyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    presentation: ChipCard
    scene: str = Field(max_length=64)
    terminal_id: str = Field(min_length=1, max_length=32)
    occurred_at: dt.datetime | None = None


class Holder(BaseModel):
    name: str
    age_band: str


class VerifyAnswer(BaseModel):
    verdict: str
    reason: str
    event_id: uuid.UUID
    card_ref: str | None = None
    medium: str | None = None
    region: str | None = None
    holder: Holder | None = None
    benefits: list[str] | None = None
    status_as_of: dt.datetime | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(_sqlalchemy_url(), pool_size=int(os.environ.get("PEER_POOL", "10")), max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.keys = _public_keys()
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as opened:
        yield opened


async def caller(request: Request, authorization: Annotated[str, Header()]) -> str:
    try:
        token = authorization.removeprefix("Bearer ")
        key = request.app.state.keys[jwt.get_unverified_header(token)["kid"]]
        issuer = os.environ["PEER_ISSUER"]
        claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=issuer, issuer=issuer)
    except (jwt.PyJWTError, KeyError):
        raise HTTPException(401) from None
    if "cards:verify" not in claims["scope"].split():
        raise HTTPException(403)
    return str(claims["client_id"])


@app.post("/v1/cards/verify", response_model_exclude_none=True)
async def verify(
    asked: VerifyRequest, caller_id: Annotated[str, Depends(caller)], db: Annotated[AsyncSession, Depends(session)]
) -> VerifyAnswer:
    now = dt.datetime.now(dt.UTC)
    presented = asked.presentation
    card = await db.scalar(select(Card).where(Card.card_number == presented.card_number))
    if card is not None and card.card_identifier != presented.card_identifier.upper():
        card = None
    reason = _decide(card, asked.scene, now)
    verdict = "valid" if reason == "ok" else "refused"
    event = Event(
        id=uuid.uuid4(), card_id=card.id if card else None, caller=caller_id, scene=asked.scene,
        terminal_id=asked.terminal_id, occurred_at=asked.occurred_at or now, verdict=verdict, reason=reason,
    )  # fmt: skip
    db.add(event)
    await db.commit()
    if card is None:
        return VerifyAnswer(verdict=verdict, reason=reason, event_id=event.id)
    answer = VerifyAnswer(
        verdict=verdict, reason=reason, event_id=event.id, card_ref=_card_ref(caller_id, card.id),
        medium=MEDIA[card.generation], region=card.region,
        status_as_of=now.astimezone(CHINA).replace(microsecond=0),
    )  # fmt: skip
    if reason == "ok":
        name = card.holder_name
        answer.holder = Holder(name="*" * (len(name) - 1) + name[-1], age_band=_age_band(card.birth_date, now.date()))
        answer.benefits = []
    return answer


def _decide(card: Card | None, scene: str, now: dt.datetime) -> str:
    if card is None:
        return "unrecognised"
    reason = REASONS[card.status]
    if reason != "ok":
        return reason
    if card.valid_until < now.astimezone(CHINA).date():
        return "expired"
    return "ok" if scene in SCENES else "scene_not_allowed"


def _card_ref(caller_id: str, card_id: uuid.UUID) -> str:
    digest = hmac.digest(REF_KEY, caller_id.encode() + card_id.bytes, hashlib.sha256)
    return base64.urlsafe_b64encode(digest[:24]).decode()


def _age_band(birth_date: dt.date, today: dt.date) -> str:
    age = today.year - birth_date.year - ((today.month, today.day) < (birth_date.month, birth_date.day))
    return f"{age // 10 * 10}-{age // 10 * 10 + 9}"


def _public_keys() -> dict[str, Any]:
    keys = json.loads(Path(os.environ["PEER_JWKS"]).read_text())["keys"]
    return {key["kid"]: jwt.PyJWK(key, "EdDSA").key for key in keys}


def _sqlalchemy_url() -> str:
    return os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)


_FILL = """
INSERT INTO peer_card (card_number, card_identifier, status, valid_until, region, generation, holder_name, birth_date)
SELECT 'OI' || lpad(n::text, 7, '0'), '330424D156000005' || upper(lpad(to_hex(n), 16, '0')), 1,
       date '2027-01-01' + n % 3000, '330424', 2 + n % 2, '王' || chr(20000 + n % 5000), date '1940-01-01' + n % 25000
FROM generate_series(1, $1::int) n
"""
_REAL = """
INSERT INTO peer_card (card_number, card_identifier, status, valid_until, region, generation, holder_name, birth_date)
SELECT number, identifier, 1, date '2030-01-01', '330424', 3, '张' || chr(20000 + (n % 5000)::int),
       date '1940-01-01' + (n % 25000)::int
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t(number, identifier, n)
ON CONFLICT (card_number) DO NOTHING
"""


async def load(rows: list[dict[str, str]], cards: int) -> int:
    """Make the database and its tables anew: the cards in `rows`, and filler up to `cards`."""
    dsn = os.environ["DATABASE_URL"]
    name = urlsplit(dsn).path.lstrip("/")
    assert name.startswith("peer"), "this makes its database anew: one of its own, called peer…"
    await drop(dsn)
    server = await asyncpg.connect(dsn, database="postgres")
    try:
        await server.execute(f'CREATE DATABASE "{name}"')
    finally:
        await server.close()
    engine = create_async_engine(_sqlalchemy_url())
    async with engine.begin() as tables:
        await tables.run_sync(Base.metadata.create_all)
    await engine.dispose()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_REAL, [r["card_number"] for r in rows], [r["card_identifier"] for r in rows])
        real: int = await connection.fetchval("SELECT count(*) FROM peer_card")
        await connection.execute(_FILL, max(0, cards - real))
        await connection.execute("VACUUM ANALYZE peer_card")
        total: int = await connection.fetchval("SELECT count(*) FROM peer_card")
        return total
    finally:
        await connection.close()


async def drop(dsn: str) -> None:
    """Remove the database, if it is there."""
    name = urlsplit(dsn).path.lstrip("/")
    server: Any = await asyncpg.connect(dsn, database="postgres")
    try:
        await server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await server.close()


class AnnouncedServer(uvicorn.Server):
    """Says when it can be called."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8082)
    parser.add_argument("--load", type=Path, help="fill the database with these cards, then end")
    parser.add_argument("--cards", type=int, default=415_000)
    parser.add_argument("--drop", action="store_true", help="remove the database, then end")
    given = parser.parse_args()
    if given.load:
        rows = [json.loads(line) for line in given.load.read_text().splitlines()]
        print(f"{asyncio.run(load(rows, given.cards))} cards")
    elif given.drop:
        asyncio.run(drop(os.environ["DATABASE_URL"]))
    else:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=given.port, loop="uvloop", http="httptools", access_log=False,
            log_level="warning", workers=1, backlog=2048,
        )  # fmt: skip
        AnnouncedServer(config).run()


if __name__ == "__main__":
    main()
