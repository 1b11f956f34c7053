"""/docs in a real browser: readable, without a script, without any outside host."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.running import Running

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        await browser.close()


async def test_the_contract_is_shown_without_outside_hosts(gateway: Running, browser: Browser) -> None:
    page = await browser.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    answer = await page.goto(f"{gateway.url}/docs")
    assert answer is not None and answer.status == 200
    assert await page.locator("h1").inner_text() == "一卡通 gateway 0.1.0"
    assert await page.locator("section#verify_card h2").inner_text() == "POST /v1/cards/verify"
    assert "unsupported_media_type" in await page.locator("section#verify_card code").all_inner_texts()
    assert "`" not in await page.locator("main").inner_text()
    # the style is applied: the page's policy did not block it
    assert await page.locator(".page").evaluate("element => getComputedStyle(element).display") == "grid"
    assert all(url.startswith(gateway.url) for url in asked)
    assert [text for text in complaints if "favicon" not in text] == []
    await page.close()
