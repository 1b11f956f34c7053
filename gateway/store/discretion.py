"""What a PostgreSQL server writes to its own log about our statements.

Our statements carry their values as parameters, and people's values only sealed or as keyed digests. Even so, a log of
parameters is a list of which card was where and when, with none of the rights that guard the events: a server that
keeps one is refused. What single failed statements leave behind is advice (THREATS.md says why).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

OF_A_SESSION = {
    "log_parameter_max_length_on_error": "0",
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
}
"""What any role may set for itself: our connections do."""

_WRITES_STATEMENTS = {
    "log_statement": ("none", "ddl"),
    "log_min_duration_statement": ("-1",),
    "log_min_duration_sample": ("-1",),
    "log_transaction_sample_rate": ("0",),
}
"""Settings that log statements, and the values with which they log none of ours."""

_WRITES_PLANS = {"auto_explain.log_min_duration": ("-1", None), "pgaudit.log_parameter": ("off", None)}
"""Of extensions (None: not loaded); plans quote parameters."""

NAMES = (*_WRITES_STATEMENTS, *_WRITES_PLANS, "log_parameter_max_length", "log_error_verbosity", "log_min_messages")

Values = Mapping[str, str | None]


async def shown(connection: "AnyConnection", names: Sequence[str]) -> dict[str, str | None]:
    """Settings as they are in force for this connection; None for one that the server does not know."""
    rows = await connection.fetch("SELECT name, current_setting(name, true) FROM unnest($1::text[]) name", list(names))
    return {row[0]: row[1] for row in rows}


def indiscretions(values: Values) -> list[str]:
    """Why a server's log would hold the parameters of our statements, each with what to set; empty if it does not."""
    found = [
        f"{name} = {values[name]}: the server would log card indexes; set it to {allowed[0]}"
        for name, allowed in _WRITES_PLANS.items()
        if values[name] not in allowed
    ]
    if values["log_parameter_max_length"] != "0":
        found += [
            f"{name} = {values[name]}: the server would log card indexes;"
            f" set log_parameter_max_length to 0 or {name} to {allowed[0]}"
            for name, allowed in _WRITES_STATEMENTS.items()
            if values[name] not in allowed
        ]
    return found


async def advice(connection: "AnyConnection") -> list[str]:
    """What a superuser should set so that failed statements leave no values behind; they are sealed or keyed."""
    values = await shown(connection, NAMES)
    found = []
    if values["log_error_verbosity"] != "terse" and values["log_min_messages"] not in ("log", "fatal", "panic"):
        found.append("set log_error_verbosity to terse: the details of an error quote rows and keys")
    return found
