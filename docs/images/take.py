"""Take the pictures of the console anew: ``python docs/images/take.py``, with the extras ``local`` and ``dev``.

Starts the embedded stack in a folder of its own, lets it work for some minutes, so that the charts have lines, and
looks at it with Debian's Chromium. The pictures lie beside this file.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
from playwright.async_api import Browser, Page, async_playwright

FOLDER: Final = Path(__file__).parent
WORKERS: Final = 4
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0
# What the proxy is asked for meanwhile, so that there is usage.
REQUEST: Final = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}
REQUEST_PAUSE_SECONDS: Final = 2.0
SETTLE_MILLISECONDS: Final = 2500
WIDE: Final = {"width": 1360, "height": 800}
TALL: Final = {"width": 1360, "height": 1080}
PHONE: Final = {"width": 375, "height": 780}


@asynccontextmanager
async def stack(data_dir: Path) -> AsyncIterator[dict[str, Any]]:
    """The embedded stack; its state file."""
    command = [sys.executable, "-m", "fleetpulse", "up", "--workers", str(WORKERS), "--data-dir", str(data_dir)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (state := data_dir / "fleetpulse.json").exists():
                if process.returncode is not None:
                    raise SystemExit("fleetpulse up ended")
                await asyncio.sleep(0.5)
        yield json.loads(state.read_text())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()


async def use(state: dict[str, Any]) -> None:
    """Ask the proxy now and then, until cancelled."""
    headers = {"Authorization": f"Bearer {state['inference_key']}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"{state['proxy_url']}/v1/chat/completions", json=REQUEST) as answer:
                    await answer.read()
            await asyncio.sleep(REQUEST_PAUSE_SECONDS)


async def logged_in(browser: Browser, state: dict[str, Any]) -> Page:
    """A page that was given the admin key."""
    page = await browser.new_page(viewport=WIDE, reduced_motion="reduce")
    await page.goto(state["control_url"])
    await page.get_by_label("API key or admin key").fill(state["admin_key"])
    await page.keyboard.press("Enter")
    await page.locator("table.fleet tbody tr").nth(WORKERS - 1).wait_for()
    return page


async def take(page: Page, url: str) -> None:
    """All pictures."""
    await shot(page, f"{url}/#/", "fleet-light")
    await page.emulate_media(color_scheme="dark")
    worker = await page.locator("table.fleet tbody th a").first.inner_text()
    with silent(worker):
        await page.locator("table.fleet tbody tr").filter(has_text=worker).get_by_text("stale", exact=True).wait_for()
        await shot(page, f"{url}/#/", "fleet-dark")
    await page.emulate_media(color_scheme="light")
    # Of the workers with most GPUs there is most to see.
    await page.get_by_role("button", name="GPUs", exact=True).click()
    worker = await page.locator("table.fleet tbody th a").first.get_attribute("href")
    await page.set_viewport_size(TALL)
    await shot(page, f"{url}/{worker}", "worker")
    await shot(page, f"{url}/#/usage", "usage")
    await page.set_viewport_size(PHONE)
    await shot(page, f"{url}/#/", "phone")


@contextlib.contextmanager
def silent(worker: str) -> Iterator[None]:
    """Freeze a worker's agent for a while."""
    agents = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "agent" in (process.info["cmdline"] or ()) and worker in process.environ().values()
    ]
    for agent in agents:
        agent.suspend()
    try:
        yield
    finally:
        for agent in agents:
            agent.resume()


async def shot(page: Page, url: str, name: str) -> None:
    """One picture."""
    await page.goto(url)
    await page.wait_for_timeout(SETTLE_MILLISECONDS)
    await page.screenshot(path=FOLDER / f"console-{name}.png")


async def main(minutes: float) -> None:
    """Start, wait, take."""
    data_dir = Path(tempfile.mkdtemp(prefix="fleetpulse-pictures-"))
    try:
        async with stack(data_dir) as state, async_playwright() as playwright:
            using = asyncio.create_task(use(state))
            await asyncio.sleep(60 * minutes)
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            await take(await logged_in(browser, state), state["control_url"])
            await browser.close()
            using.cancel()
            await asyncio.gather(using, return_exceptions=True)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the pictures of the console anew.")
    parser.add_argument("--minutes", type=float, default=12.0, help="how long the stack works before")
    asyncio.run(main(parser.parse_args().minutes))
