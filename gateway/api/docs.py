"""GET /openapi.json and /docs: the contract, built from the types that decode the requests.

/docs is one page made here, without a script and without an outside host (redoc 3, tried first, brings 2.3 MB,
telemetry and outside links).
"""

import re
import secrets
from functools import lru_cache
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup, escape

from gateway.api.middleware import Call
from gateway.api.reply import Reply

_templates = jinja2.Environment(loader=jinja2.PackageLoader("gateway.api"), autoescape=True)
_templates.policies["json.dumps_kwargs"] = {"sort_keys": False}


def _with_code(text: object) -> Markup:
    """OpenAPI's descriptions are CommonMark; ours use no more of it than `code`."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


_templates.filters["with_code"] = _with_code


@lru_cache(maxsize=1)
def _contract() -> dict[str, Any]:
    from gateway.api.openapi import build  # it reads the routes, which name this module

    return build()


@lru_cache(maxsize=1)
def _contract_json() -> bytes:
    return msgspec.json.encode(_contract())


async def openapi(call: Call) -> Reply:
    return Reply(_contract_json())


async def docs(call: Call) -> Reply:
    nonce = secrets.token_urlsafe(12)
    text = _templates.get_template("docs.html").render(api=_contract(), nonce=nonce)
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Reply(text.encode(), headers=headers)
