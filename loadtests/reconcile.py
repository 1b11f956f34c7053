"""Proves that answers and events agree: every 2xx verify of the last locust run has exactly one event, and there is no
event that nobody asked for. `python -m loadtests.reconcile`; exit code 1 if it finds a disagreement.

The log of requests comes from locustfile.py, the events from the bureau's feed, read over HTTP from its beginning.
"""

import argparse
import datetime as dt
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.client import Caller, CallError, Session

PAGE = 1000
PAGES_MAX = 50_000
SETTLE_S = 10.0
"""How long the last events may take to appear in the feed."""
SAME_FIELDS = ("event_id", "caller", "scene", "verdict", "reason")
SHOWN = 5

Record = dict[str, Any]


@dataclass
class Log:
    """The requests of one run, by their terminal_id."""

    started_at: dt.datetime
    terminals: str
    requests: dict[str, Record]


@dataclass
class Feed:
    """The events since the run's start."""

    all_events: int = 0
    """In the whole feed, from its beginning."""
    of_others: int = 0
    """Since the start, from terminals that are not the run's."""
    by_terminal: defaultdict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Finding:
    """What the comparison found: examples of terminal_ids by fault, and counts that are no fault."""

    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)


FAULTS = {
    "missing": "answered, but no event",
    "doubled": "one request, several events",
    "differs": "the event says something else than the answer",
    "not taken": "refused with 4xx, but an event",
    "unasked": "an event without a request",
}


def read_log(file: Path) -> Log:
    """The last run in the log. Raises ValueError if there is none."""
    log: Log | None = None
    with file.open() as stream:
        for line in stream:
            record = json.loads(line)
            if "run_started_at" in record:
                log = Log(dt.datetime.fromisoformat(record["run_started_at"]), record["terminals"], {})
            elif log is not None:
                log.requests[record["terminal_id"]] = record
    if log is None:
        raise ValueError(f"{file}: no run in it; run locust first")
    return log


def pages(session: Session) -> Iterator[list[Record]]:
    """The whole feed, page by page."""
    after = ""
    for _ in range(PAGES_MAX):
        page = session.get(f"/v1/usage-events?limit={PAGE}{after}")
        yield page["items"]
        after = f"&after={page['next']}"
        if not page["more"]:
            return
    raise CallError(f"the feed has more than {PAGES_MAX} pages")


def read_feed(session: Session, log: Log) -> Feed:
    feed = Feed()
    for items in pages(session):
        feed.all_events += len(items)
        for event in items:
            if event["terminal_id"].startswith(log.terminals):
                if event["terminal_id"] in log.requests or _is_since(event, log):
                    feed.by_terminal[event["terminal_id"]].append(event)
            elif _is_since(event, log):
                feed.of_others += 1
    return feed


def _is_since(event: Record, log: Log) -> bool:
    return dt.datetime.fromisoformat(event["recorded_at"]) >= log.started_at


def compare(log: Log, feed: Feed, *, alone: bool) -> Finding:
    """Hold requests and events against each other, both ways."""
    finding = Finding()
    for terminal_id, request in log.requests.items():
        found = feed.by_terminal.get(terminal_id, [])
        outcome = request["outcome"]
        finding.counts[f"requests {outcome}"] += 1
        if len(found) > 1:
            finding.faults["doubled"].append(terminal_id)
        elif outcome == "answered" and not found:
            finding.faults["missing"].append(terminal_id)
        elif outcome == "answered" and any(found[0][name] != request[name] for name in SAME_FIELDS):
            finding.faults["differs"].append(terminal_id)
        elif outcome == "not_taken" and found:
            finding.faults["not taken"].append(terminal_id)
        elif outcome == "unknown" and found:
            finding.counts["events of requests with an unknown outcome (allowed)"] += 1
    finding.faults["unasked"].extend(feed.by_terminal.keys() - log.requests.keys())
    finding.counts["events since the start"] = sum(map(len, feed.by_terminal.values()))
    finding.counts["events of others since the start"] = feed.of_others
    finding.counts["events in the whole feed"] = feed.all_events
    if alone and feed.of_others:
        finding.faults["unasked"].append(f"{feed.of_others} from other terminals")
    return finding


def broken(finding: Finding) -> bool:
    return any(finding.faults.values())


def show(finding: Finding, title: str) -> None:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, count in finding.counts.items():
        table.add_row(name, f"{count:,}", "")
    table.add_section()
    for fault, meaning in FAULTS.items():
        found = finding.faults[fault]
        table.add_row(meaning, f"{len(found):,}", " ".join(found[:SHOWN]), style="red" if found else "green")
    Console().print(table)


def plant(log: Log, feed: Feed) -> bool:
    """Whether a dropped and an invented event are noticed."""
    terminal_id = next(name for name, request in log.requests.items() if request["outcome"] == "answered")
    dropped = feed.by_terminal.pop(terminal_id)
    invented = log.terminals + "planted"
    feed.by_terminal[invented] = [dropped[0] | {"terminal_id": invented}]
    finding = compare(log, feed, alone=False)
    show(finding, "self-check: one event dropped, one invented")
    return finding.faults["missing"] == [terminal_id] and finding.faults["unasked"] == [invented]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8080')}")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DATA_DIR", "var")))
    default = os.environ.get("LOAD_LOG", "loadtests/results/requests.ndjson")
    parser.add_argument("--log", type=Path, default=Path(default))
    parser.add_argument("--alone", action="store_true", help="nobody else used the gateway: other events are a fault")
    parser.add_argument("--plant", action="store_true", help="check that a lost and an invented event are noticed")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    try:
        log = read_log(given.log)
        session = Session(given.url, Caller.read(given.data_dir, "demo-bureau"))
        ends = time.monotonic() + SETTLE_S
        while True:
            feed = read_feed(session, log)
            finding = compare(log, feed, alone=given.alone)
            if not finding.faults["missing"] or time.monotonic() > ends:
                break
            time.sleep(1.0)
    except (CallError, OSError, ValueError) as error:
        sys.exit(f"reconcile: {error}")
    show(finding, f"answers and events since {log.started_at:%F %T}")
    if not finding.counts["requests answered"]:
        sys.exit("reconcile: no request was answered: nothing is proved")
    if broken(finding):
        sys.exit("reconcile: answers and events do NOT agree")
    if given.plant and not plant(log, feed):
        sys.exit("reconcile: the planted faults were NOT noticed")
    print("answers and events agree" + ("; the planted faults were noticed" if given.plant else ""))


if __name__ == "__main__":
    main()
