// The fleet as one screen.

import { Chart } from "./chart.js";
import { h, keyed, put, set } from "./dom.js";
import { HISTORY_SECONDS, history, temperatures, workers } from "./fleet_data.js";
import { ago, celsius, count, percent, short, shown, watts } from "./format.js";
import { fleetTable } from "./fleet_table.js";
import { listen } from "./live.js";
import { badge, section, shares, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated, state } from "./states.js";
import { LEVELS, why } from "./why.js";

const LOOK_SECONDS = 2;
const LARGE_FLEET = 500;
const LARGE_LOOK_SECONDS = 6;
const SLOW_SECONDS = 10;
const MINUTE_GAP_SECONDS = 90;
const LEAST_SECONDS = 600;

const SILENCE = {
  not_following: "Control does not hear the heartbeats. What you see is of what was heard before.",
  just_joined: "Control has only just joined the stream: who is silent is not known yet.",
  many_silent:
    "Many workers fell silent at once: rather the pipeline than the workers. Nothing destructive is done meanwhile.",
};

export function fleetView(place) {
  const seen = { answer: null, at: 0, heat: new Map() };
  const notice = h("div", { class: "notices" });
  const tiles = h("ul", { class: "tiles", "aria-label": "The fleet in numbers" });
  const list = fleetTable();
  const charts = historyCharts();
  const body = h("div", {}, loading());
  place.append(title("Fleet"), notice, body);

  function show() {
    const { answer } = seen;
    if (!answer) return;
    const judged = answer.workers.map((worker) => ({
      worker,
      ...why(worker, answer.mass_silence),
      heat: seen.heat.get(worker.worker_id),
    }));
    put(notice, ...notices(answer));
    if (!judged.length) {
      body.replaceChildren(
        noData("no worker was heard of yet. Start an agent, or deploy some workers: it takes seconds."),
      );
      return;
    }
    if (!tiles.isConnected) body.replaceChildren(tiles, charts.element, section("Workers", list.element));
    showTiles(tiles, judged);
    list.show(judged);
  }

  const polls = [];
  polls.push(
    every(
      LOOK_SECONDS,
      async (signal) => {
        const size = seen.answer?.workers.length ?? 0;
        // A large fleet is a large answer; events tell in between what matters most.
        if (size > LARGE_FLEET && Date.now() - seen.at < LARGE_LOOK_SECONDS * 1000) return;
        seen.answer = await workers(signal);
        seen.at = Date.now();
        show();
      },
      (error) => {
        if (!seen.answer) body.replaceChildren(failure(error, () => polls[0].now()));
        else put(notice, outdated(error, seen.at));
      },
    ),
    every(
      SLOW_SECONDS,
      async (signal) => {
        seen.heat = await temperatures(seen.answer?.workers.length ?? 0, signal);
        show();
      },
      () => {
        seen.heat = new Map();
        show();
      },
    ),
    every(SLOW_SECONDS, async (signal) => charts.show(await history(signal)), charts.fail),
  );
  const deaf = listen((event) => {
    if (event.kind === "worker" || event.kind === "gap") {
      seen.at = 0;
      polls[0].now();
    }
  });
  return () => {
    deaf();
    polls.forEach((one) => one.stop());
    charts.destroy();
  };
}

function notices(answer) {
  const silence = answer.mass_silence;
  if (!silence.active) return [];
  const text = SILENCE[silence.reason] ?? "Silence is not taken for death now.";
  return [state(silence.reason === "just_joined" ? "nodata" : "error", text)];
}

function showTiles(tiles, judged) {
  const counts = Object.fromEntries(LEVELS.map((level) => [level, judged.filter((one) => one.level === level).length]));
  const heard = judged.filter(({ worker }) => worker.state === "alive").map(({ worker }) => worker);
  const gpus = sum(heard.map(({ load }) => load?.gpu_count));
  const kv = heard
    .map(({ engine }) => engine?.kv_cache_usage_ratio)
    .filter((value) => value !== null && value !== undefined);
  const hottest = judged
    .filter((one) => one.heat && one.heat.hottest !== null)
    .sort((a, b) => b.heat.hottest - a.heat.hottest)[0];
  const running = sum(heard.map(({ engine }) => engine?.requests_running));
  const waiting = sum(heard.map(({ engine }) => engine?.requests_waiting));
  const shownTiles = [
    ["Workers", count(judged.length), workersLine(counts, judged.length)],
    ["GPUs", shown(gpus, count, "no GPU was reported"), ["use ", shown(weighted(heard), percent)]],
    ["Requests running", shown(running, count, "no engine tells"), [shown(waiting, count), " waiting"]],
    ["KV cache", shown(kv.length ? Math.max(...kv) : null, percent, "no engine tells"), "fullest of all engines"],
    [
      "Hottest GPU",
      shown(hottest?.heat.hottest, celsius),
      hottest ? h("a", { href: workerLink(hottest.worker) }, hottest.worker.worker_id) : "no reading lately",
    ],
    ["Power", shown(sum(judged.map((one) => one.heat?.watts)), watts), "all GPUs"],
  ];
  keyed(
    tiles,
    shownTiles,
    ([label]) => label,
    makeTile,
    (tile, [, value, line]) => {
      put(tile.children[1], value);
      put(tile.children[2], ...[line].flat());
    },
  );
}

const makeTile = ([label]) =>
  h("li", { class: "tile" }, h("span", { class: "label" }, label), h("strong", {}), h("span", { class: "line" }));

function workersLine(counts, whole) {
  const said = [
    ["good", "well"],
    ["warn", "troubled"],
    ["bad", "stale or stalled"],
    ["unknown", "other"],
  ].filter(([level]) => counts[level]);
  return [
    shares(
      said.map(([level]) => ({ level, number: counts[level] })),
      whole,
    ),
    h("span", { class: "badges" }, ...said.map(([level, word]) => badge(level, `${count(counts[level])} ${word}`))),
  ];
}

// Null when nobody told anything: that is not the same as a sum of zero.
function sum(values) {
  const told = values.filter((value) => value !== null && value !== undefined);
  return told.length ? told.reduce((all, value) => all + value, 0) : null;
}

function weighted(heard) {
  const told = heard.filter(({ load }) => load?.gpu_count && load.gpu_utilization_ratio !== null);
  const whole = sum(told.map(({ load }) => load.gpu_count));
  return whole ? sum(told.map(({ load }) => load.gpu_count * load.gpu_utilization_ratio)) / whole : null;
}

export const workerLink = (worker) => `#/worker/${encodeURIComponent(worker.worker_id)}`;

const times = (value, row) => (value === null || value === undefined ? null : value * row.series_count);
const CHARTS = [
  { family: "gpu", title: "GPU use", format: percent, most: 1, series: { mean: (row) => row.utilization_ratio } },
  {
    family: "engine",
    title: "Requests",
    format: count,
    series: { running: (row) => times(row.requests_running, row), waiting: (row) => times(row.requests_waiting, row) },
  },
  {
    family: "engine",
    title: "Generated tokens/s",
    format: short,
    series: { tokens: (row) => times(row.generation_tokens_per_second, row) },
  },
  { family: "gpu", title: "Power", format: watts, series: { all: (row) => times(row.power_watts, row) } },
];

function historyCharts() {
  const charts = CHARTS.map((design) => ({
    design,
    chart: new Chart({ ...design, height: 104, sync: "fleet", legend: false }),
  }));
  const notice = h("div", { class: "notices" });
  const figures = h("div", { class: "charts small" }, ...charts.map(({ chart }) => chart.figure));
  const element = section("Last hour", notice, figures);
  let readAt = 0;
  return {
    element,
    show(found) {
      readAt = Date.now();
      put(notice, "");
      for (const { design, chart } of charts) {
        const answer = found[design.family];
        const to = Date.parse(answer.to) / 1000;
        const from = began(answer.rows, to);
        const series = Object.entries(design.series).map(([label, value]) => ({
          label,
          points: answer.rows.map((row) => ({ time: Date.parse(row.time) / 1000, value: value(row) })),
        }));
        chart.show({ from, to, gapSeconds: MINUTE_GAP_SECONDS, series }, latest(series, design.format, to));
      }
      set(element, { "aria-busy": null });
    },
    fail(error) {
      if (readAt) put(notice, outdated(error, readAt));
      else for (const { chart } of charts) chart.instead(failure(error));
    },
    destroy: () => charts.forEach(({ chart }) => chart.destroy()),
  };
}

// A young fleet fills the chart, instead of an hour in which it was not there.
function began(rows, to) {
  const first = rows.length ? Date.parse(rows[0].time) / 1000 : to;
  return Math.max(to - HISTORY_SECONDS, Math.min(first, to - LEAST_SECONDS));
}

function latest(series, format, now) {
  const newest = series.map(({ label, points }) => [label, points.findLast(({ value }) => isTold(value))]);
  const said = newest.filter(([, point]) => point);
  if (!said.length) return null;
  const age = now - Math.min(...said.map(([, { time }]) => time));
  const text = said
    .map(([label, { value }]) => (series.length > 1 ? `${format(value)} ${label}` : format(value)))
    .join(", ");
  return age > 3 * MINUTE_GAP_SECONDS ? `${text}, ${ago(age)}` : text;
}

const isTold = (value) => value !== null && value !== undefined;
