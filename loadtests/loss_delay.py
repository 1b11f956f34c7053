"""How long after its report may a lost card still be called valid? Against a running sandbox (make run).

Terminals verify a card without a pause while the kiosk reports it lost. A verify that began after the report's answer
must not say valid: that is an error. One that was on its way may; how late it may still arrive is printed.
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
TERMINALS = 8


class Seen(NamedTuple):
    began: float
    ended: float
    reason: str


def partner() -> Any:
    """The client that partners copy."""
    spec = importlib.util.spec_from_file_location("yikatong", ROOT / "config" / "clients" / "yikatong.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def watch(client: Any, card: dict[str, str], seen: list[Seen], stop: threading.Event) -> None:
    while not stop.is_set():
        began = time.monotonic()
        answer = client.verify(card, "kiosk.service", "T-delay")
        seen.append(Seen(began, time.monotonic(), answer.json()["reason"]))


def one_loss(module: Any, caller: dict[str, Any], card: dict[str, str]) -> tuple[list[Seen], float]:
    """(what the terminals saw, when the report's answer had come); the card is released afterwards."""
    clients = [module.Client(caller) for _ in range(TERMINALS + 1)]
    for client in clients:
        client.token()
    seen: list[Seen] = []
    stop = threading.Event()
    threads = [threading.Thread(target=watch, args=(client, card, seen, stop)) for client in clients[1:]]
    for thread in threads:
        thread.start()
    while len(seen) < 5 * TERMINALS:
        time.sleep(0.001)
    report = clients[0].report_loss(card, str(uuid.uuid4()))
    accepted = time.monotonic()
    while sum(one.began > accepted for one in list(seen)) < 5 * TERMINALS:
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    if report.status != 200 or report.json()["social_security"]["status"] != "accepted":
        sys.exit(f"the loss was not accepted: {report.status} {report.body!r}")
    clients[0].release(report.json()["reference"], str(uuid.uuid4()))
    return seen, accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DATA_DIR", "var")))
    parser.add_argument("--cards", type=int, default=50, help="losses to report, at most 500")
    options = parser.parse_args()
    sandbox = options.data_dir / "sandbox"
    caller = json.loads((sandbox / "callers" / "demo-kiosk.json").read_text())
    with (sandbox / "cards.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "1" and row["valid_until"] > "2027"]
    module, verifies, late, after = partner(), 0, [], 0
    for row in rows[: min(options.cards, 500)]:
        card = {name: row[name] for name in ("card_number", "card_identifier")} | {"type": "chip_card"}
        seen, accepted = one_loss(module, caller, card)
        verifies += len(seen)
        after += sum(one.began > accepted for one in seen)
        wrong = [one for one in seen if one.began > accepted and one.reason == "ok"]
        if wrong:
            sys.exit(f"{len(wrong)} verifies that began after the report's answer said valid")
        late += [one.ended - accepted for one in seen if one.reason == "ok" and one.ended > accepted]
    print(
        f"{options.cards} losses, {verifies} verifies, {after} begun after the report's answer: none valid; "
        f"{len(late)} that had begun before said valid up to {max(late, default=0) * 1000:.1f} ms after it"
    )


if __name__ == "__main__":
    main()
