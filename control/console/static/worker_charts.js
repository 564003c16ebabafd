// A worker's charts: which there are, and how rows of the three activities become their lines.

import { ask, query } from "./api.js";
import { Chart } from "./chart.js";
import { h, put } from "./dom.js";
import { bytes, celsius, count, percent, short, watts } from "./format.js";
import { every } from "./polling.js";
import { failure, loading } from "./states.js";

const gpuName = (row) => (row.gpu_index === null ? row.gpu_id : `GPU ${row.gpu_index}`);
const engineName = (row) =>
  row.engine_index && row.engine_index !== "0" ? `${row.model_id} ${row.engine_index}` : row.model_id;
const alone = () => "";
const rate = (format) => (value) => `${format(value)}/s`;

// Lines: label → field. Where a chart has several series (GPUs, engines), each has all of the lines.
const DESIGNS = {
  gpu: {
    name: gpuName,
    charts: [
      { title: "GPU use", format: percent, most: 1, lines: { "": "utilization_ratio" } },
      { title: "GPU memory", format: bytes, lines: { "": "memory_used_bytes" } },
      {
        title: "GPU temperature",
        format: celsius,
        lines: { "": "temperature_celsius" },
        limit: "temperature_limit_celsius",
      },
      { title: "GPU power", format: watts, lines: { "": "power_watts" } },
    ],
  },
  engine: {
    name: engineName,
    charts: [
      { title: "Requests", format: count, lines: { running: "requests_running", waiting: "requests_waiting" } },
      { title: "KV cache", format: percent, most: 1, lines: { "": "kv_cache_usage_ratio" } },
      {
        title: "Tokens",
        format: rate(short),
        lines: { generated: "generation_tokens_per_second", prompt: "prompt_tokens_per_second" },
      },
      { title: "Prefix cache hits", format: percent, most: 1, lines: { "": "prefix_cache_hit_ratio" } },
    ],
  },
  system: {
    name: alone,
    charts: [
      { title: "CPU", format: percent, most: 1, lines: { "": "cpu_utilization_ratio" } },
      { title: "Memory", format: percent, most: 1, lines: { "": "memory_utilization_ratio" } },
      {
        title: "Network",
        format: rate(bytes),
        lines: { received: "network_received_bytes_per_second", sent: "network_sent_bytes_per_second" },
      },
      {
        title: "Disks",
        format: rate(bytes),
        lines: { read: "disk_read_bytes_per_second", written: "disk_written_bytes_per_second" },
      },
    ],
  },
};
const HEADINGS = { gpu: "GPUs", engine: "Engine", system: "Host" };
const WIDTH_SECONDS = { minute: 60, hour: 3600, day: 86_400 };
// Of raw samples a gap is what is longer than so many of their usual distances.
const GAP_DISTANCES = 3.5;
const GAP_BUCKETS = 1.5;

export function workerCharts(workerId, asked) {
  const told = h("p", { class: "found", "aria-live": "polite" });
  const families = Object.entries(DESIGNS).map(([family, design]) => ({
    family,
    design,
    charts: design.charts.map((one) => new Chart({ ...one, sync: "worker" })),
  }));
  const element = h(
    "div",
    {},
    ...families.map(({ family, charts }) =>
      h(
        "div",
        { class: "family" },
        h("h3", {}, HEADINGS[family]),
        h("div", { class: "charts" }, ...charts.map(({ figure }) => figure)),
      ),
    ),
  );
  for (const { charts } of families) for (const chart of charts) chart.instead(loading());

  const polls = families.map(({ family, design, charts }) => {
    const read = async (signal) => {
      const answer = await ask(request(family, design, workerId, asked), { signal });
      put(told, toldOf(answer));
      show(answer, design, charts);
    };
    const failed = (error) => charts.forEach((chart) => chart.instead(failure(error, () => poll.now())));
    let poll = every(pause(asked), read, failed);
    return {
      again() {
        poll.stop();
        poll = every(pause(asked), read, failed);
      },
      stop: () => poll.stop(),
    };
  });
  return {
    element,
    told,
    change(differently) {
      Object.assign(asked, differently);
      polls.forEach((poll) => poll.again());
    },
    destroy() {
      polls.forEach((poll) => poll.stop());
      for (const { charts } of families) for (const chart of charts) chart.destroy();
    },
  };
}

const pause = ({ window: seconds }) => Math.min(60, Math.max(4, Number(seconds) / 600));

function request(family, design, workerId, { window: seconds, granularity }) {
  const fields = new Set(
    design.charts.flatMap(({ lines, limit }) => [...Object.values(lines), ...(limit ? [limit] : [])]),
  );
  return query(`/${family}/activity`, {
    worker_id: workerId,
    window_s: seconds,
    granularity,
    fields: [...fields].join(","),
  });
}

const SHOWN_AS = { second: "samples as they came", minute: "by the minute", hour: "by the hour", day: "by the day" };
const toldOf = (answer) => `${SHOWN_AS[answer.granularity]}${answer.truncated ? ", the newest that fit" : ""}`;

function show(answer, design, charts) {
  const groups = Map.groupBy ? Map.groupBy(answer.rows, design.name) : grouped(answer.rows, design.name);
  const [from, to] = [Date.parse(answer.from) / 1000, Date.parse(answer.to) / 1000];
  const names = [...groups.keys()].sort(new Intl.Collator("en", { numeric: true }).compare);
  for (const [place, one] of design.charts.entries()) {
    const series = names.flatMap((name) =>
      Object.entries(one.lines).map(([label, field]) => ({
        label: [names.length > 1 || !label ? name : "", label].filter(Boolean).join(" ") || one.title,
        points: points(groups.get(name), field),
      })),
    );
    if (one.limit && names.length) series.push(...limits(names, groups, one.limit));
    charts[place].show({ from, to, gapSeconds: gap(answer, groups), series });
  }
}

function grouped(rows, name) {
  const groups = new Map();
  for (const row of rows) groups.set(name(row), [...(groups.get(name(row)) ?? []), row]);
  return groups;
}

const points = (rows, field) => rows.map((row) => ({ time: Date.parse(row.time) / 1000, value: row[field] }));

// One line for the lowest limit: the others are further away.
function limits(names, groups, field) {
  const told = names
    .map((name) => points(groups.get(name), field).filter(({ value }) => value !== null))
    .filter((one) => one.length);
  if (!told.length) return [];
  told.sort((a, b) => a.at(-1).value - b.at(-1).value);
  return [{ label: "limit", points: told[0], dashed: true }];
}

function gap({ granularity }, groups) {
  if (WIDTH_SECONDS[granularity]) return GAP_BUCKETS * WIDTH_SECONDS[granularity];
  const [first = []] = groups.values();
  const times = first.map((row) => Date.parse(row.time) / 1000);
  const distances = times
    .slice(1)
    .map((at, place) => at - times[place])
    .sort((a, b) => a - b);
  return Math.max(1.5, GAP_DISTANCES * (distances[Math.floor(distances.length / 2)] ?? 5));
}
