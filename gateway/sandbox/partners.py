"""The sandbox's partners: simulated hosts kept running beside the gateway, and the blocks that connect them.

Each has a book under `sandbox/partners/`, which outlives it, and the same ports as long as the gateway runs.
"""

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from gateway.crypto.key_files import write_private
from gateway.domain.errors import CannotStart
from gateway.sandbox import merchants
from gateway.sandbox.peers import ecard_platform_host, merchant_host, usage_feed_host
from gateway.sandbox.peers.open_bank_host import open_keys
from gateway.settings import Settings

log = structlog.get_logger()

_START_S = 20.0
_AGAIN_S = 0.5
_OPENING_FEN = 1_000_000
"""What a card's account at the ISO 8583 bank begins with."""

_LOSS_ROUTES = {"bank-jiaxing": "bank-jiaxing"}
"""ISO 8583 has no loss notice: the other bank is told by its customers."""

_BLOCKS = """\
# Written by the sandbox: its simulated partners.
[partners.bank-haiyan]
name = "海盐示范银行(合成)"
adapter = "bank_iso8583"
operations = ["purchase", "reverse", "refund", "balance"]
timeout_ms = 3000
concurrency_max = 256
waiting_max = 256
link = {{ host = "127.0.0.1", port = {bank-haiyan} }}
[partners.bank-haiyan.keys]
mac = {{ kind = "mac-sm4", file = "sandbox/partners/bank-haiyan/mac.key" }}
[partners.bank-haiyan.dialect]
merchant_id = "898330448161001"
terminal_id = "GATEWAY1"

[partners.bank-jiaxing]
name = "嘉兴示范银行(合成)"
adapter = "bank_signed_http"
operations = ["purchase", "reverse", "refund", "balance", "account_check", "transfer", "batch_transfer", "notify_loss",
              "check_file", "query_status"]
timeout_ms = 3000
body_max_bytes = 4_194_304
concurrency_max = 64
waiting_max = 64
http = {{ base_url = "http://127.0.0.1:{bank-jiaxing}" }}
[partners.bank-jiaxing.keys]
sign = {{ kind = "sm2", file = "sandbox/partners/bank-jiaxing/sign.key" }}
encrypt = {{ kind = "sm4-cbc", file = "sandbox/partners/bank-jiaxing/encrypt.key" }}
partner = {{ kind = "sm2", file = "sandbox/partners/bank-jiaxing/partner.key" }}
[partners.bank-jiaxing.dialect]
app_id = "yikatong"
bank_id = "330424"
merchants = {{ demo-merchant = {{ account = "6217000000000009001", name = "示范商户(合成)" }} }}

[partners.ecard-platform]
name = "全国社保卡服务平台(合成)"
adapter = "ecard_platform"
operations = ["verify_ecard_code", "ecard_sign_level", "scan_login", "scan_login_state"]
concurrency_max = 64
waiting_max = 64
http = {{ base_url = "http://127.0.0.1:{ecard-platform}" }}
[partners.ecard-platform.keys]
signing = {{ kind = "hmac-sha1", file = "sandbox/partners/ecard-platform/signing.key" }}
body = {{ kind = "aes-ecb", file = "sandbox/partners/ecard-platform/body.key" }}
[partners.ecard-platform.dialect]
access_key = "{access_key}"
channel_no = "{channel_no}"
access_no = "{access_no}"
system_name = "{system_name}"

[partners.bureau]
name = "海盐县人社局(合成)"
adapter = "usage_feed_http"
operations = ["deliver_usage"]
timeout_ms = 30_000
http = {{ base_url = "http://127.0.0.1:{bureau}" }}
[partners.bureau.keys]
sign = {{ kind = "sm2", file = "sandbox/partners/bureau/sign.key" }}
partner = {{ kind = "sm2", file = "sandbox/partners/bureau/partner.key" }}
[partners.bureau.dialect]
subscriber = "yikatong-330424"

[partners.province]
name = "浙江省用卡数据汇集(合成)"
adapter = "usage_feed_http"
operations = ["deliver_usage"]
timeout_ms = 30_000
http = {{ base_url = "http://127.0.0.1:{province}" }}
[partners.province.keys]
sign = {{ kind = "hmac-sm3", file = "sandbox/partners/province/sign.key" }}
partner = {{ kind = "hmac-sm3", file = "sandbox/partners/province/partner.key" }}
[partners.province.dialect]
subscriber = "yikatong-330424"
signature = "hmac"
""" + merchants.BLOCKS.replace("{keys}", "sandbox/partners/merchants")


class Host(NamedTuple):
    """A simulated partner: its module and what it is told besides its ports and book."""

    name: str
    module: str
    options: list[str]


class Ports(NamedTuple):
    port: int
    control: int


async def start(settings: Settings, keep: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """Start the hosts and connect the gateway to them: workers that start afterwards find them in their environment.

    `keep` holds what keeps a host running. Raises CannotStart.
    """
    folder = settings.data_dir / "sandbox" / "partners"
    hosts = _hosts(settings.data_dir, folder)
    ports: dict[str, Ports] = {}
    for host in hosts:
        process, ports[host.name] = await _launch(host, folder, Ports(0, 0))
        keep(_keep_running(host, folder, ports[host.name], process))
    file = settings.data_dir / "sandbox" / "partners.toml"
    numbers = {name: one.port for name, one in ports.items()}
    names = {
        name.lower(): getattr(ecard_platform_host, name)
        for name in ("ACCESS_KEY", "CHANNEL_NO", "ACCESS_NO", "SYSTEM_NAME")
    }
    write_private(file, _BLOCKS.format(**numbers, **names))
    addresses = {
        name: {"address": f"127.0.0.1:{one.port}", "control": f"http://127.0.0.1:{one.control}"}
        for name, one in ports.items()
    }
    write_private(settings.data_dir / "sandbox" / "partners.json", json.dumps(addresses, indent=1) + "\n")
    os.environ |= {"PARTNERS_FILE": str(file), "ECARD_PARTNER": "ecard-platform"}
    os.environ.setdefault("LOSS_ROUTES", json.dumps(_LOSS_ROUTES))
    os.environ.setdefault("OUTBOX_ENABLED", "true")


def _hosts(data_dir: Path, folder: Path) -> list[Host]:
    """With the keys that each shares with the gateway, made at the first start."""
    haiyan, jiaxing = folder / "bank-haiyan", folder / "bank-jiaxing"
    haiyan.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (haiyan / "mac.key").exists():
        write_private(haiyan / "mac.key", secrets.token_hex(16) + "\n")
    open_keys(jiaxing)
    for name, signature in (("bureau", "sm2"), ("province", "hmac")):
        usage_feed_host.open_keys(folder / name, signature)
    merchant_host.open_keys(folder / "merchants")
    return [
        Host("bank-haiyan", "bank_iso8583_host",
             ["--mac-key-file", str(haiyan / "mac.key"), "--opening-fen", str(_OPENING_FEN)]),
        Host("bank-jiaxing", "open_bank_host", ["--keys", str(jiaxing)]),
        Host("ecard-platform", "ecard_platform_host", ["--data-dir", str(data_dir)]),
        Host("bureau", "usage_feed_host", ["--keys", str(folder / "bureau")]),
        Host("province", "usage_feed_host", ["--keys", str(folder / "province"), "--signature", "hmac"]),
        Host("merchants", "merchant_host", ["--keys", str(folder / "merchants")]),
    ]  # fmt: skip


async def _launch(host: Host, folder: Path, ports: Ports) -> tuple[asyncio.subprocess.Process, Ports]:
    """The host once it serves. Raises CannotStart."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"gateway.sandbox.peers.{host.module}", "--port", str(ports.port),
        "--control-port", str(ports.control), "--book", str(folder / f"{host.name}.ndjson"), *host.options,
        env=os.environ | {"PARENT_PID": str(os.getpid())}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            words = (await process.stdout.readline()).split()
    except TimeoutError:
        words = []
    if len(words) != 3:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise CannotStart(f"the simulated partner {host.name} does not start; the log above says why")
    return process, Ports(int(words[1]), int(words[2]))


async def _keep_running(host: Host, folder: Path, ports: Ports, process: asyncio.subprocess.Process) -> None:
    """Start it again at the same ports when it ends; until cancelled, which ends it."""
    try:
        while True:
            code = await process.wait()
            log.warning("simulated partner ended; starting it again", partner=host.name, code=code)
            await asyncio.sleep(_AGAIN_S)
            with contextlib.suppress(CannotStart):
                process, _ = await _launch(host, folder, ports)
    finally:
        if process.returncode is None:
            process.terminate()
