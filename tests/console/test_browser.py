"""The console in Debian's Chromium, before a control that hears real heartbeats."""

import json
import re
from typing import Any

import psycopg
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Locator, Page, expect

from fleetpulse.local.ports import free_port

# The machine may have much else to do.
expect.set_options(timeout=30_000)
pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="module")]

VIEWS = ("", "worker/busy", "deployments", "events", "usage", "alerts")
CONTRAST_ONLY = {"runOnly": ["color-contrast"]}
PHONE = {"width": 360, "height": 740}
# Which columns of a chart's picture have the line in them, between its axes.
INKED = """canvas => {
    const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue('--series-1').trim()
        .match(/[0-9a-f]{2}/g).map(part => parseInt(part, 16));
    const {data, width, height} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const isLine = at => data[at + 3] > 200 &&
        Math.abs(data[at] - r) + Math.abs(data[at + 1] - g) + Math.abs(data[at + 2] - b) < 60;
    return Array.from({length: width}, (_, x) =>
        Array.from({length: height}, (_, y) => 4 * (y * width + x)).some(isLine));
}"""
FOCUSED = """() => {
    const one = document.activeElement, shown = one.matches('.choices input') ? one.nextElementSibling : one;
    const style = getComputedStyle(shown);
    return [one.tagName.toLowerCase(), (one.textContent || one.id || one.value || '').trim().slice(0, 30),
        style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""


def row(page: Page, worker: str) -> Locator:
    return page.locator("table.fleet tbody tr").filter(has=page.get_by_role("link", name=worker, exact=True))


def cell(page: Page, worker: str, label: str) -> Locator:
    return row(page, worker).locator(f'[data-label="{label}"]')


async def settled(page: Page, view: str) -> None:
    """Wait until a view has read what it shows."""
    await expect(page.locator("h1")).to_be_visible()
    if view == "":
        await row(page, "busy").wait_for()
    await expect(page.locator(".loading")).to_have_count(0)


async def test_a_key_opens_the_console_and_stays_where_no_script_can_read_it(tabs: Any, control: Any) -> None:
    tab = await tabs(known=False)
    tab.refusals_expected = True
    page = await tab.open()
    key = control.admin["Authorization"].removeprefix("Bearer ")
    field = page.get_by_label("API key or admin key")
    await field.fill("not the key")
    await page.get_by_role("button", name="Log in with the key").click()
    await expect(page.get_by_role("alert")).to_contain_text("wrong key")
    await field.fill(key)
    await field.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Fleet")
    (cookie,) = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    kept = await page.evaluate("[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    assert kept[0] == ""
    assert key not in str(kept)
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
    assert await page.context.cookies() == []


async def test_a_user_logs_in_with_a_password_and_sees_what_is_theirs(tabs: Any, control: Any) -> None:
    tab = await tabs(known=False)
    tab.refusals_expected = True
    request = tab.page.context.request
    made = await request.post(
        f"{control.url}/organizations", headers=control.admin, data={"slug": "theirs", "name": "Theirs"}
    )
    organization = (await made.json())["organization_id"]
    user = {"email": "ann@example.org", "password": "correct horse battery", "scopes": ["read"]}
    await request.post(f"{control.url}/users", headers=control.admin, data=user | {"organization_id": organization})
    page = await tab.open()
    await page.get_by_label("Email").fill(user["email"])
    await page.get_by_role("textbox", name="Password").fill(user["password"])
    await page.get_by_role("button", name="Log in", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Deployments")
    assert await page.get_by_role("navigation").get_by_role("link").all_inner_texts() == [
        "Deployments",
        "Events",
        "Usage",
    ]


async def test_the_fleet_is_shown_as_the_heartbeats_tell_and_what_is_missing_is_no_zero(tabs: Any) -> None:
    page = await (await tabs()).open()
    await expect(cell(page, "busy", "State")).to_contain_text("ready")
    for label, shown in {"Running": "12", "Waiting": "3", "KV cache": "42 %", "GPUs": "8", "GPU use": "83 %"}.items():
        await expect(cell(page, "busy", label)).to_have_text(shown)
    await expect(cell(page, "busy", "Hottest")).to_have_text("71 °C")
    await expect(cell(page, "bare", "CPU")).to_have_text("5 %")
    for label in ("Running", "KV cache", "GPUs", "GPU use"):
        await expect(cell(page, "bare", label)).to_contain_text("not measured")
    await expect(page.get_by_role("list", name="The fleet in numbers")).to_contain_text("Requests running")


async def test_a_silent_worker_is_shown_stale_and_back_again_without_a_reload(tabs: Any, workers: Any) -> None:
    talking, _ = workers
    talking.talk("quiet")
    page = await (await tabs()).open()
    await row(page, "quiet").wait_for()
    await expect(cell(page, "quiet", "State")).to_contain_text("ready")
    await page.evaluate("window.notReloaded = true")
    talking.hush("quiet")
    await expect(cell(page, "quiet", "State")).to_contain_text("stale")
    await expect(cell(page, "quiet", "State")).to_contain_text("Silent for")
    assert await page.locator("table.fleet tbody tr").first.inner_text() != ""
    await expect(page.locator("table.fleet tbody th").first).to_contain_text("quiet")
    await expect(page.get_by_role("status").last).to_contain_text("quiet is stale")
    await page.get_by_role("link", name="Alerts").click()
    alerts = page.get_by_role("region", name="Seen by control").get_by_role("row")
    # Right after control joined the stream silence proves nothing, and that is one alert.
    await expect(alerts.filter(has_text=re.compile("WorkerStale.*quiet|MassSilence")).first).to_be_visible()
    await expect(page.get_by_role("region", name="Alertmanager")).to_contain_text("No data: no Alertmanager is known")
    await page.get_by_role("link", name="Fleet", exact=True).click()
    talking.talk("quiet")
    await expect(cell(page, "quiet", "State")).to_contain_text("ready")
    assert await page.evaluate("window.notReloaded")
    talking.hush("quiet")


async def test_a_chart_has_a_gap_where_there_are_no_samples(tabs: Any) -> None:
    page = await (await tabs(viewport={"width": 1280, "height": 900})).open("worker/busy")
    chart = page.locator("figure").filter(has_text="GPU use")
    canvas = chart.locator("canvas")
    await canvas.wait_for()
    await expect(chart.get_by_role("group")).to_have_attribute("aria-label", re.compile("GPU 0: now .* %, .* to .*%"))
    inked = "".join("#" if one else " " for one in await canvas.evaluate(INKED))
    runs = [len(run) for run in re.findall(r"#+", re.sub(r"(?<=#) {1,2}(?=#)", "#", inked))]
    assert len(runs) == 2, inked
    gap = len(re.search(r"# {3,}#", inked)[0])  # type: ignore[index]
    # 150 s without samples, and 100 s with some on its left.
    assert 1.2 < gap / runs[0] < 1.8
    await chart.get_by_role("group").focus()
    await page.keyboard.press("End")
    await expect(chart.locator(".reading")).to_contain_text(re.compile(r"GPU 0 \d+ %"))
    temperature = page.locator("figure").filter(has_text="GPU temperature")
    await expect(temperature).to_contain_text("71 °C")


async def test_other_windows_and_granularities_are_asked_for(tabs: Any) -> None:
    page = await (await tabs()).open("worker/busy")
    await settled(page, "worker/busy")
    async with page.expect_request(lambda one: "window_s=86400" in one.url and "granularity=hour" in one.url):
        await page.get_by_text("1 d", exact=True).click()
        await page.get_by_text("Hours", exact=True).click()
    await expect(page.locator(".tools .found")).to_have_text("by the hour")
    await expect(page.locator("figure").filter(has_text="GPU use")).to_contain_text("No data")


async def test_events_arrive_as_they_happen(tabs: Any, workers: Any) -> None:
    talking, _ = workers
    page = await (await tabs()).open("events")
    await expect(page.get_by_text("live", exact=True)).to_be_visible()
    await talking.step("i-new", "ready", 7)
    happened = page.get_by_role("region", name="As they happen").get_by_role("row").filter(has_text="i-new")
    await expect(happened).to_contain_text("ready")
    await expect(happened).to_contain_text("engine ready")
    await expect(page.get_by_role("status").last).to_contain_text("i-new is ready")


async def test_the_page_finds_control_again_after_a_restart(
    tabs: Any, workers: Any, console_database_url: str, start_control: Any
) -> None:
    talking, bootstrap = workers
    tab = await tabs(known=False)
    tab.refusals_expected = True
    settings = {"port": free_port(), "session_secret": "kept for longer than a process lives"}
    async with start_control(console_database_url, bootstrap, **settings) as control:
        tab.url = control.url
        page = await tab.open()
        await page.get_by_label("API key or admin key").fill(control.admin["Authorization"].removeprefix("Bearer "))
        await page.keyboard.press("Enter")
        await row(page, "busy").wait_for()
        await expect(page.get_by_text("live", exact=True)).to_be_visible()
        await page.evaluate("window.notReloaded = true")
    await expect(page.locator("#notices")).to_contain_text("The connection for live events is lost")
    await expect(page.locator(".view .state-stale")).to_contain_text("What you see is")
    async with start_control(console_database_url, bootstrap, **settings):
        await expect(page.get_by_text("live", exact=True)).to_be_visible()
        await expect(page.locator(".state-stale")).to_have_count(0)
        await page.get_by_role("link", name="Events").click()
        await talking.step("i-after", "ready", 3)
        happened = page.get_by_role("region", name="As they happen").get_by_role("row").filter(has_text="i-after")
        await expect(happened).to_contain_text("ready")
        assert await page.evaluate("window.notReloaded")
        await page.goto("about:blank")  # before nobody answers it


NUMBERS = {
    "watts": {1_999: "1999 W", 5_500: "5.5 kW", 640_000: "640 kW", 7_000_000: "7.0 MW"},
    "count": {10_000: "10,000", 1.7: "1.7", 0: "0"},
    "percent": {0.999: "99 %", 0.001: "<1 %", 0: "0 %"},
    "bytes": {71_000_000_000: "71 GB", 1_500: "1.5 kB"},
}


async def test_numbers_are_short_enough_for_an_axis(tabs: Any) -> None:
    page = await (await tabs()).open("alerts")
    given = [[name, value] for name, values in NUMBERS.items() for value in values]
    told = await page.evaluate(
        "(given) => import('/console/format.js').then((all) => given.map(([name, value]) => all[name](value)))", given
    )
    assert told == [text for values in NUMBERS.values() for text in values.values()]


async def test_deployments_show_how_far_they_are(tabs: Any, control: Any) -> None:
    with psycopg.connect(control.database_url, autocommit=True) as sql:
        for statement in (
            "INSERT INTO organizations (slug, name) VALUES ('makers', 'Makers')",
            """INSERT INTO deployments
                (organization_id, name, provider, zone, instance_type, instance_count, created_by)
            SELECT organization_id, 'two of them', 'far', 'here', 'small', 2, 'test' FROM organizations
            WHERE slug = 'makers'""",
            """INSERT INTO instances (instance_id, deployment_id, organization_id, provider, zone, instance_type, state,
                created_by, price_per_hour)
            SELECT given.name, deployment_id, organization_id, 'far', 'here', 'small', state, 'test', 1.25
            FROM deployments AS d, (VALUES ('i-ready', 'ready'), ('i-coming', 'starting')) AS given(name, state)
            WHERE d.name = 'two of them'""",
        ):
            sql.execute(statement)
    page = await (await tabs()).open("deployments")
    card = page.get_by_role("article", name="two of them")
    await expect(card).to_contain_text("1 ready")
    await expect(card).to_contain_text("1 starting")
    await expect(card.get_by_role("progressbar")).to_have_attribute("aria-label", "Progress of two of them")
    await card.get_by_text("Instances").click()
    await expect(card.get_by_role("row").filter(has_text="i-coming")).to_contain_text("€1.25")


CLOSINGS_COUNTED = """() => {
    const close = window.EventSource.prototype.close;
    window.closings = 0;
    window.EventSource.prototype.close = function () { window.closings += 1; close.call(this); };
}"""
# The browser's own word for whether somebody looks, in a browser without a screen.
SEEN = """hidden => {
    Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
}"""
MANY = [
    {
        "name": "WorkerStale",
        "severity": "warning",
        "kind": "worker",
        "subject": None,
        "since_seconds": 71.0,
        "detail": "4,000 workers",
        "count": 4000,
    }
]
COSTS = {
    "totals": {"EUR": {"serving": 1, "idle": 3, "unready": 0, "dead": 0, "orphan": 0}},
    "truncated": False,
    "rows": [
        {
            "instance_id": None,
            "provider": None,
            "instance_type": None,
            "machine_id": None,
            "model": "org/model",
            "price_per_hour": None,
            "currency": "EUR",
            "machines": 2,
            "seconds": {"serving": 3600, "idle": 10800, "unready": 0, "dead": 0, "orphan": 0},
            "costs": {"serving": 1, "idle": 3, "unready": 0, "dead": 0, "orphan": 0},
            "idle_ratio": 0.75,
            "input_tokens": 1_500_000,
            "output_tokens": 500_000,
            "cost_per_million_tokens": 2.0,
        }
    ],
}


async def test_the_money_that_idle_machines_cost_is_shown_beside_what_requests_cost(tabs: Any) -> None:
    tab = await tabs()
    asked: list[str] = []

    async def told(route: Any) -> None:
        asked.append(route.request.url)
        await route.fulfill(json=COSTS)

    await tab.page.route("**/usage/costs?*", told)
    page = await tab.open("usage")
    money = page.get_by_role("region", name="Where the money goes")
    await expect(money).to_contain_text("€4.00 in all, 75 % of it idle and 25 % serving.")
    row = money.get_by_role("row").filter(has_text="org/model")
    for part in ("serving 60 min, idle 3 h", "75 %", "€4.00", "2,000,000", "€2.00"):
        await expect(row).to_contain_text(part)
    assert "group_by=model" in asked[-1]
    async with page.expect_request(lambda one: "usage/costs" in one.url and "group_by=machine" in one.url):
        await page.get_by_text("Instances", exact=True).click()


async def test_what_is_wrong_with_many_and_why_an_act_failed_is_said(tabs: Any, control: Any) -> None:
    tab = await tabs()
    nobody = {"state": "not_configured", "detail": None, "alerts": []}
    told = {"summary": {"critical": 0, "warning": 4000, "info": 0}, "alerts": MANY, "alertmanager": nobody}
    await tab.page.route("**/alerts", lambda route: route.fulfill(json=told))
    page = await tab.open("alerts")
    await expect(page.get_by_role("link", name="4,000 workers")).to_have_attribute("href", "#/")
    with psycopg.connect(control.database_url, autocommit=True) as sql:
        sql.execute(
            "INSERT INTO action_log (action, provider, succeeded, actor, detail)"
            """ VALUES ('provider.create', 'far', false, 'job:provisioning', '{"error": "no H100 left in fr-1"}')"""
        )
    await tab.open("events")
    log = page.get_by_role("region", name="Action log")
    await expect(log.get_by_role("row").filter(has_text="failed")).to_contain_text("no H100 left in fr-1")


async def test_a_page_that_nobody_sees_holds_no_connection_and_catches_up_when_it_is_seen(
    tabs: Any, workers: Any
) -> None:
    talking, _ = workers
    page = await (await tabs()).open("events")
    await expect(page.get_by_text("live", exact=True)).to_be_visible()
    await page.evaluate(CLOSINGS_COUNTED)
    await page.evaluate(SEEN, True)
    assert await page.evaluate("window.closings") == 1
    await talking.step("i-meanwhile", "ready", 9)
    async with page.expect_request(lambda one: "/events?last_event_id=" in one.url):
        await page.evaluate(SEEN, False)
    happened = page.get_by_role("region", name="As they happen").get_by_role("row")
    await expect(happened.filter(has_text="i-meanwhile")).to_contain_text("ready")
    await expect(happened.filter(has_text="missed")).to_have_count(0)


async def test_who_logs_in_next_does_not_see_what_the_one_before_heard(tabs: Any, workers: Any, control: Any) -> None:
    talking, _ = workers
    tab = await tabs(known=False)
    tab.refusals_expected = True
    page = await tab.open("events")
    for number in range(2):
        await page.get_by_label("API key or admin key").fill(control.admin["Authorization"].removeprefix("Bearer "))
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("live", exact=True)).to_be_visible()
        await talking.step(f"i-of-{number}", "ready", 5)
        happened = page.get_by_role("region", name="As they happen")
        await expect(happened).to_contain_text(f"i-of-{number}")
        await expect(happened).not_to_contain_text(f"i-of-{1 - number}")
        await page.get_by_role("button", name="Log out").click()


async def test_no_data_stale_and_error_are_three_things(tabs: Any) -> None:
    tab = await tabs()
    tab.refusals_expected = True
    page = tab.page
    problem = {"type": "about:blank", "title": "x", "status": 503, "detail": "the database is away"}

    async def away(route: Any) -> None:
        await route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(problem))

    await page.route("**/workers", away)
    await tab.open()
    await expect(page.get_by_role("alert")).to_contain_text("Error: the database is away.")
    await page.unroute("**/workers")
    await page.get_by_role("button", name="Try again").click()
    await row(page, "busy").wait_for()
    await expect(page.get_by_role("alert")).to_have_count(0)
    await page.route("**/workers", lambda route: route.abort())
    await expect(page.locator(".state-stale")).to_contain_text("control does not answer. What you see is")
    await expect(cell(page, "busy", "Running")).to_have_text("12")
    await page.unroute("**/workers")
    await tab.open("worker/nobody")
    await expect(page.locator(".state-nodata").first).to_contain_text("No data: no worker nobody was ever heard of")


async def test_every_view_is_accessible_in_light_and_dark(tabs: Any) -> None:
    tab = await tabs(color_scheme="light", viewport={"width": 1280, "height": 900})
    page = tab.page
    for view in VIEWS:
        await page.emulate_media(color_scheme="light")
        await tab.open(view)
        await settled(page, view)
        found = await Axe().run(page)
        assert found.violations_count == 0, f"{view}: {found.generate_report()}"
        assert await brightness(page) > 200
        await page.emulate_media(color_scheme="dark")
        # What else axe looks for is the same in both schemes.
        found = await Axe().run(page, options=CONTRAST_ONLY)
        assert found.violations_count == 0, f"{view}, dark: {found.generate_report()}"
        assert await brightness(page) < 60


async def brightness(page: Page) -> float:
    """Of the page behind everything: 255 is white."""
    color = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in re.findall(r"\d+", color)[:3]) / 3


async def test_a_phone_needs_no_scrolling_to_the_side_and_nothing_moves_where_that_is_asked_for(tabs: Any) -> None:
    tab = await tabs(viewport=PHONE, is_mobile=True, has_touch=True, reduced_motion="reduce")
    page = tab.page
    for view in reversed(VIEWS):
        await tab.open(view)
        await settled(page, view)
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view
    assert await page.evaluate("document.getAnimations().filter(one => one.playState === 'running').length") == 0
    found = await Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


async def test_the_keyboard_reaches_everything_and_the_focus_is_seen(tabs: Any) -> None:
    page = await (await tabs(viewport={"width": 1280, "height": 900})).open()
    await settled(page, "")
    reached: list[tuple[str, str]] = []
    for _ in range(60):
        await page.keyboard.press("Tab")
        tag, text, is_seen = await page.evaluate(FOCUSED)
        if tag == "body":
            break
        assert is_seen, (tag, text)
        reached.append((tag, text))
    texts = [text for _, text in reached]
    assert texts[0] == "Skip to the content"
    for wanted in ("Fleet", "Alerts", "Log out", "fleet-search", "all", "GPU use", "Heard ", "busy", "bare"):
        assert any(text.startswith(wanted.strip()) for text in texts), (wanted, texts)
    await row(page, "busy").get_by_role("link").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("busy")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    assert await page.title() == "busy · fleetpulse"


async def test_rows_can_be_found_narrowed_and_sorted(tabs: Any) -> None:
    page = await (await tabs()).open()
    await settled(page, "")
    await page.get_by_label("Find").fill("BUSY-host")
    await expect(page.locator("table.fleet tbody tr")).to_have_count(1)
    await page.get_by_label("Find").fill("")
    await page.get_by_role("button", name="CPU").click()
    header = page.get_by_role("columnheader", name="CPU")
    await expect(header).to_have_attribute("aria-sort", "ascending")
    await page.get_by_role("button", name="CPU").click()
    await expect(header).to_have_attribute("aria-sort", "descending")
    await expect(page.locator("table.fleet tbody th").first).to_contain_text("busy")
