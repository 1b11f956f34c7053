"""The users' mix: terminals of several callers that verify cards, and the bureau that reads the feed.

    locust -f loadtests/locustfile.py --headless -u 50 -r 10 -t 30s --host http://127.0.0.1:8080

Every verify carries a terminal_id of its own, and what became of it is written to a log (`LOAD_LOG`) with which
reconcile.py proves afterwards that events and answers agree. Reads the sandbox's files under `DATA_DIR` (`var`).
"""

import csv
import datetime as dt
import json
import os
import random
import secrets
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtests.client import FORM, RENEW_BEFORE_S, Caller

DATA_DIR = Path(os.environ.get("DATA_DIR", "var"))
LOG = Path(os.environ.get("LOAD_LOG", "loadtests/results/requests.ndjson"))
TERMINALS = "LOAD-"
CHINA = dt.timezone(dt.timedelta(hours=8))
KEPT_REFS = 200

SCENES_OF = {
    "demo-merchant": ("parking.entry", "parking.exit", "hotel.checkin", "dining.till", "market.till", "library.loan"),
    "demo-transit": ("transit.bus", "transit.metro"),
    "demo-kiosk": ("kiosk.service", "library.loan", "medical.window", "gov.window"),
    "demo-bank": ("bank.counter",),
    "demo-talent": ("talent.service", "exam.checkin"),
    "demo-region": ("region.visit", "scenic.entry"),
}
"""Which caller verifies where (config/scenes.toml)."""
CALLER_WEIGHTS = {
    "demo-merchant": 8, "demo-transit": 6, "demo-kiosk": 2, "demo-bank": 1, "demo-talent": 1, "demo-region": 1,
}  # fmt: skip


class RequestLog:
    """One JSON object a line; each line is one write, so that several processes may share the file."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self) -> None:
        """Forget earlier runs."""
        os.ftruncate(self._file, 0)
        self.write({"run_started_at": dt.datetime.now(CHINA).isoformat(), "terminals": TERMINALS})

    def write(self, record: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")


def read_cards(file: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(cards that are good today, cards that are not) of the sandbox."""
    today = dt.datetime.now(CHINA).date().isoformat()
    good: list[dict[str, str]] = []
    bad: list[dict[str, str]] = []
    with file.open() as stream:
        for row in csv.DictReader(stream):
            chip = {"card_number": row["card_number"], "card_identifier": row["card_identifier"]}
            (good if row["status"] == "1" and row["valid_until"] >= today else bad).append(chip)
    return good, bad


request_log = RequestLog(LOG)
good_cards, bad_cards = read_cards(DATA_DIR / "sandbox" / "cards.csv")


def begin_log(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        request_log.begin()


events.init.add_listener(begin_log)  # type: ignore[no-untyped-call]


class TokenUser(FastHttpUser):
    """A user that is some caller. Abstract."""

    abstract = True
    caller_name = ""
    network_timeout = 10.0
    connection_timeout = 5.0

    def on_start(self) -> None:
        self.caller = Caller.read(DATA_DIR, self.caller_name)
        self.token = ""
        self.renew_at = 0.0

    def authorization(self) -> dict[str, str]:
        if time.monotonic() >= self.renew_at:
            self.renew()
        return {"Authorization": f"Bearer {self.token}"}

    def renew(self) -> None:
        form, headers = self.caller.token_form(), {"Content-Type": FORM}
        with self.client.post("/oauth2/token", data=form, headers=headers, catch_response=True) as answer:
            if answer.status_code == 200:
                found = json.loads(answer.text or "")
                self.token = found["access_token"]
                self.renew_at = time.monotonic() + found["expires_in"] - RENEW_BEFORE_S


class TerminalUser(TokenUser):
    """A terminal of one caller, chosen by weight."""

    weight = 10
    wait_time = between(0.02, 0.2)

    def on_start(self) -> None:
        self.caller_name = random.choices(list(CALLER_WEIGHTS), list(CALLER_WEIGHTS.values()))[0]
        self.refs: list[str] = []
        super().on_start()

    @task(60)
    def good_card(self) -> None:
        found = self.verify("good card", {"type": "chip_card"} | random.choice(good_cards), "valid")
        if found and "card_ref" in found:
            self.refs = [*self.refs[-KEPT_REFS:], found["card_ref"]]

    @task(12)
    def bad_card(self) -> None:
        self.verify("bad card", {"type": "chip_card"} | random.choice(bad_cards), "refused")

    @task(6)
    def unknown_card(self) -> None:
        chip = {"card_number": f"OI{random.randrange(10**7):07}", "card_identifier": secrets.token_hex(16).upper()}
        self.verify("unknown card", {"type": "chip_card"} | chip, "refused")

    @task(20)
    def kept_reference(self) -> None:
        if self.refs:
            self.verify("card_ref", {"type": "card_ref", "card_ref": random.choice(self.refs)}, "valid")

    @task(2)
    def wrong_scene(self) -> None:
        own = SCENES_OF[self.caller_name]
        scene = "bank.counter" if "bank.counter" not in own else "talent.service"
        self.verify("wrong scene", {"type": "chip_card"} | random.choice(good_cards), "refused", scene)

    @task(1)
    def new_token(self) -> None:
        self.renew()

    def verify(
        self, name: str, presentation: dict[str, str], expected: str, scene: str | None = None
    ) -> dict[str, Any] | None:
        """Verify, log what became of it, and hold the verdict against what was expected."""
        scene = scene or random.choice(SCENES_OF[self.caller_name])
        terminal_id = TERMINALS + secrets.token_hex(12)
        body = {"presentation": presentation, "scene": scene, "terminal_id": terminal_id}
        record = {"terminal_id": terminal_id, "caller": self.caller_name, "scene": scene, "outcome": "unknown"}
        headers = self.authorization() | {"Content-Type": "application/json"}
        found: dict[str, Any] | None = None
        try:
            with self.client.post(
                "/v1/cards/verify", data=json.dumps(body), headers=headers, name=f"verify: {name}", catch_response=True
            ) as answer:
                record["status"] = str(answer.status_code)
                if 200 <= answer.status_code < 300:
                    found = json.loads(answer.text or "")
                    record |= {key: found[key] for key in ("event_id", "verdict", "reason")}
                    record["outcome"] = "answered"
                    if found["verdict"] != expected:
                        answer.failure(f"{found['verdict']}/{found['reason']}, not {expected}")
                elif 400 <= answer.status_code < 500:
                    record["outcome"] = "not_taken"
        finally:  # a run's end breaks off requests that are under way: their outcome is unknown
            request_log.write(record)
        return found


class BureauUser(TokenUser):
    """The bureau's reader of the feed, with a cursor that it keeps."""

    fixed_count = 1
    caller_name = "demo-bureau"
    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        super().on_start()
        self.cursor: str | None = None

    @task
    def read_feed(self) -> None:
        after = f"&after={self.cursor}" if self.cursor else ""
        with self.client.get(
            f"/v1/usage-events?limit=500{after}", headers=self.authorization(), name="feed", catch_response=True
        ) as answer:
            if answer.status_code == 200:
                self.cursor = json.loads(answer.text or "")["next"]
