// Requests, tokens and money; and whether the engines counted the same tokens as the proxy.

import { ask, query } from "./api.js";
import { Chart } from "./chart.js";
import { costsOf } from "./costs.js";
import { h, keyed, put } from "./dom.js";
import { count, duration, missing, money, percent, short, shown, time, words } from "./format.js";
import { badge, choices, fill, row, section, table, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated } from "./states.js";

const LOOK_SECONDS = 15;
const LEDGER_LINES = 20;
const WINDOWS = [
  ["3600", "1 h"],
  ["86400", "1 d"],
  ["604800", "7 d"],
  ["2592000", "30 d"],
  ["31536000", "1 y"],
];
// Steps of the charts, and how long each is.
const STEPS = {
  3600: ["minute", 60],
  86400: ["hour", 3600],
  604800: ["hour", 3600],
  2592000: ["day", 86_400],
  31536000: ["day", 86_400],
};
const GROUPS = [
  ["model", "Models"],
  ["organization", "Organisations"],
  ["key", "Keys"],
  ["instance", "Instances"],
];
const COLUMNS = [
  { label: "Of", heading: true },
  { label: "Requests", number: true },
  { label: "Not successful", number: true },
  { label: "Input tokens", number: true },
  { label: "Output tokens", number: true },
  { label: "Cached", number: true },
  { label: "First token", number: true },
  { label: "Engine time", number: true },
  { label: "Cost", number: true },
];
const LEDGER_COLUMNS = [
  { label: "From", heading: true },
  { label: "Worker" },
  { label: "Known" },
  { label: "Proxy's tokens", number: true },
  { label: "Engine's tokens", number: true },
  { label: "Difference", number: true },
];

export function usageView(place, session) {
  const asked = { window: "86400", group: "model" };
  const notice = h("div", { class: "notices" });
  const tiles = h("ul", { class: "tiles five", "aria-label": "Usage in numbers" });
  const charts = timeCharts();
  const parts = table("Usage", COLUMNS);
  const groups = section("By whom", parts.whole);
  const body = h("div", {}, loading());
  const change = (differently) => {
    Object.assign(asked, differently);
    poll.now();
    costs.now();
  };
  place.append(
    title("Usage"),
    h(
      "div",
      { class: "tools" },
      choices("Time shown", "usage-window", WINDOWS, asked.window, (value) => change({ window: value })),
      choices("A row for each of these", "usage-group", GROUPS, asked.group, (value) => change({ group: value })),
    ),
    notice,
    body,
  );
  let readAt = 0;

  const poll = every(
    LOOK_SECONDS,
    async (signal) => {
      const [granularity, step] = STEPS[asked.window];
      const [sums, steps] = await Promise.all([
        ask(query("/usage", { window_s: asked.window, group_by: asked.group }), { signal }),
        ask(query("/usage", { window_s: asked.window, group_by: "model", granularity }), { signal }),
      ]);
      readAt = Date.now();
      put(
        notice,
        sums.truncated || steps.truncated ? noData("there is more than fits; what is shown is not all.") : "",
      );
      if (!sums.rows.length) {
        body.replaceChildren(noData("no request was recorded in this time."));
        return;
      }
      if (!tiles.isConnected) body.replaceChildren(tiles, charts.element, groups);
      showTiles(tiles, sums.rows);
      charts.show(steps, step);
      keyed(
        parts.body,
        sums.rows,
        ({ id }) => id,
        () => row(COLUMNS),
        (element, one) => fill(element, cells(one)),
      );
    },
    (error) => {
      if (error.status === 404) body.replaceChildren(noData("usage is not available: this control does not tell it."));
      else if (readAt) put(notice, outdated(error, readAt));
      else body.replaceChildren(failure(error, () => poll.now()));
    },
  );
  const costs = costsOf(place, asked);
  const ledger = session.operator ? ledgerOf(place) : null;
  return () => {
    poll.stop();
    costs.stop();
    ledger?.stop();
    charts.destroy();
  };
}

// Null when nobody tells: unknown tokens are not zero tokens.
function sum(rows, field) {
  const told = rows.map((one) => one[field]).filter((value) => value !== null);
  return told.length ? told.reduce((all, value) => all + value, 0) : null;
}

function pricesOf(rows) {
  const costs = {};
  for (const one of rows)
    for (const [currency, cost] of Object.entries(one.costs)) costs[currency] = (costs[currency] ?? 0) + cost;
  return costs;
}

function price(costs) {
  const told = Object.entries(costs).filter(([, cost]) => cost !== null);
  return told.length ? told.map(([currency, cost]) => money(cost, currency)).join(" + ") : missing("no price is known");
}

function showTiles(tiles, rows) {
  const requests = sum(rows, "requests");
  const unknown = sum(rows, "unknown_token_requests");
  const unpriced = sum(rows, "unpriced_requests");
  const found = [
    ["Requests", count(requests), `${percent(sum(rows, "successful_requests") / requests)} successful`],
    [
      "Input tokens",
      shown(sum(rows, "input_tokens"), short),
      [shown(sum(rows, "cached_tokens"), short), " of them cached"],
    ],
    [
      "Output tokens",
      shown(sum(rows, "output_tokens"), short),
      unknown ? `unknown for ${count(unknown)} requests` : "of all requests",
    ],
    ["Engine time", shown(sum(rows, "busy_seconds"), duration), "shared out among requests"],
    ["Cost", price(pricesOf(rows)), unpriced ? `${count(unpriced)} requests without a price` : "of all requests"],
  ];
  const make = ([label]) =>
    h("li", { class: "tile" }, h("span", { class: "label" }, label), h("strong", {}), h("span", { class: "line" }));
  keyed(
    tiles,
    found,
    ([label]) => label,
    make,
    (tile, [, value, line]) => {
      put(tile.children[1], value);
      put(tile.children[2], ...[line].flat());
    },
  );
}

function cells(one) {
  const bad = one.requests - one.successful_requests;
  return [
    [h("span", {}, one.name ?? one.id), one.name && one.name !== one.id ? h("small", {}, one.id) : null],
    [count(one.requests)],
    [count(bad)],
    [shown(one.input_tokens, count, "not known")],
    [shown(one.output_tokens, count, "not known")],
    [shown(one.cached_tokens, count, "not known")],
    [shown(one.mean_first_token_seconds, duration)],
    [shown(one.busy_seconds, duration, "not known yet")],
    [price(one.costs)],
  ];
}

const SHOWN = [
  { title: "Requests", format: count, lines: { all: "requests", failed: "failed_requests" } },
  { title: "Tokens", format: short, lines: { input: "input_tokens", output: "output_tokens" } },
  { title: "Engine time", format: duration, lines: { busy: "busy_seconds" } },
];

function timeCharts() {
  const charts = SHOWN.map((design) => ({ design, chart: new Chart({ ...design, height: 120, sync: "usage" }) }));
  return {
    element: section("Over time", h("div", { class: "charts three" }, ...charts.map(({ chart }) => chart.figure))),
    show(answer, step) {
      const [from, to] = [Date.parse(answer.since) / 1000, Date.parse(answer.until) / 1000];
      const steps = new Map();
      for (const one of answer.rows) steps.set(one.time, [...(steps.get(one.time) ?? []), one]);
      const times = [...steps.keys()].sort();
      for (const { design, chart } of charts) {
        const series = Object.entries(design.lines).map(([label, field]) => ({
          label,
          points: times.map((at) => ({ time: Date.parse(at) / 1000, value: sum(steps.get(at), field) })),
        }));
        chart.show({ from, to, gapSeconds: 1.5 * step, series });
      }
    },
    destroy: () => charts.forEach(({ chart }) => chart.destroy()),
  };
}

function ledgerOf(place) {
  const parts = table("Tokens by the proxy's records and by the engines' counters, newest first", LEDGER_COLUMNS);
  const under = h("div", {}, loading());
  place.append(section("Proxy against engines", parts.whole, under));
  parts.whole.hidden = true;
  return every(
    LOOK_SECONDS,
    async (signal) => {
      const { rows } = await ask(query("/usage/ledger", { window_s: 86_400 }), { signal });
      parts.whole.hidden = !rows.length;
      put(under, ...(rows.length ? [] : [noData("no window of the last day was compared yet.")]));
      const key = (one) => `${one.window_start} ${one.instance_id} ${one.worker_id}`;
      keyed(
        parts.body,
        rows.slice(0, LEDGER_LINES),
        key,
        () => row(LEDGER_COLUMNS),
        (element, one) => fill(element, compared(one)),
      );
    },
    (error) =>
      put(
        under,
        error.status === 404 ? noData("the ledger is not available: this control does not tell it.") : failure(error),
      ),
  );
}

function compared(one) {
  const both = (side) =>
    one[`${side}_input_tokens`] === null ? null : one[`${side}_input_tokens`] + one[`${side}_output_tokens`];
  return [
    [time(one.window_start), h("small", {}, `for ${duration(one.window_seconds)}`)],
    [h("a", { href: `#/worker/${encodeURIComponent(one.worker_id)}` }, one.worker_id)],
    [
      one.status === "known" ? badge("good", "known") : badge("unknown", "not known"),
      one.reason ? h("small", {}, words(one.reason)) : null,
    ],
    [shown(both("proxy"), count, "not known")],
    [shown(both("engine"), count, "not known")],
    [shown(one.gap_ratio, percent, "not known")],
  ];
}
