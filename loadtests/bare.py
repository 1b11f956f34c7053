"""The ceiling: what aiohttp on uvloop costs when the handler does nothing. `python -m loadtests.bare --port 8081`."""

import argparse
import asyncio
import signal

import uvloop
from aiohttp import web

ANSWER = (
    '{"verdict":"valid","reason":"ok","event_id":"019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071",'
    '"card_ref":"k7qzT0b2m4n6p8r0s2u4w6y8A1C3E5G7I9K","medium":"third_gen","region":"330424",'
    '"holder":{"name":"**三","age_band":"60-69"},"benefits":["parking.first_hour_free","library.free_deposit"],'
    '"status_as_of":"2026-11-23T01:58:00+08:00"}'
).encode()
"""As large as a real one."""


async def verify(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def serve(port: int) -> None:
    app = web.Application()
    app.router.add_post("/v1/cards/verify", verify)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print(f"ready http://127.0.0.1:{port}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
