"""The operators' listener: /metrics, /healthz, /readyz, on a port of its own, in the supervising process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

Check = Callable[[], Awaitable[str]]
"""Empty if all is well, else what is wrong."""

_CHECK_TIMEOUT_S = 2.0


def ops_application(metrics_dir: Path, checks: Mapping[str, Check], alive: Callable[[], bool]) -> web.Application:
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(metrics_dir))  # type: ignore[no-untyped-call]
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"alive": alive()}, status=200 if alive() else 503)

    async def readyz(request: web.Request) -> web.Response:
        began = time.monotonic()
        found = {name: await outcome(check) for name, check in checks.items()}
        ok = not any(found.values())
        report = {"ready": ok, "checks": {name: wrong or "ok" for name, wrong in found.items()}}
        report["seconds"] = round(time.monotonic() - began, 3)
        return web.json_response(report, status=200 if ok else 503)

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


async def outcome(check: Check) -> str:
    """Empty, or what is wrong; a check that fails or takes too long is wrong."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # noqa: BLE001 - a check that fails in any way is not ready
        return f"failed: {type(error).__name__}"
