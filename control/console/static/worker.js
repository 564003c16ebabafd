// One worker: what it is, why it is in its state, what it did.

import { ask, query } from "./api.js";
import { h, put } from "./dom.js";
import { ago, count, duration, missing, percent, secondsSince, shown, time, words } from "./format.js";
import { listen } from "./live.js";
import { badge, choices, fact, section, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated, stale } from "./states.js";
import { why } from "./why.js";
import { workerCharts } from "./worker_charts.js";

const LOOK_SECONDS = 2;
const STORY_SECONDS = 15;
const STORY_PART = 1000;
const STORY_LINES = 30;

export const WINDOWS = [
  ["900", "15 min"],
  ["3600", "1 h"],
  ["21600", "6 h"],
  ["86400", "1 d"],
  ["604800", "7 d"],
  ["2592000", "30 d"],
  ["31536000", "1 y"],
];
const GRANULARITIES = [
  ["", "Auto"],
  ["second", "Samples"],
  ["minute", "Minutes"],
  ["hour", "Hours"],
  ["day", "Days"],
];

export function workerView(place, workerId) {
  const asked = { window: WINDOWS[0][0], granularity: "" };
  const head = h("div", { class: "worker-head" });
  const notice = h("div", { class: "notices" });
  const facts = h("dl", { class: "facts" });
  const charts = workerCharts(workerId, asked);
  const story = h("div", { class: "story" }, loading());
  let worker = null;
  let seenAt = 0;

  const tools = h(
    "div",
    { class: "tools" },
    choices("Time shown", "window", WINDOWS, asked.window, (value) => charts.change({ window: value })),
    choices("Granularity", "granularity", GRANULARITIES, asked.granularity, (value) =>
      charts.change({ granularity: value }),
    ),
    charts.told,
  );
  place.append(
    h("p", { class: "back" }, h("a", { href: "#/" }, "← Fleet")),
    title(workerId, head),
    notice,
    facts,
    section("History", tools, charts.element),
    section("Story", story),
  );

  const look = every(
    LOOK_SECONDS,
    async (signal) => {
      worker = await ask(`/workers/${encodeURIComponent(workerId)}`, { signal });
      seenAt = Date.now();
      showWorker(worker, head, notice, facts);
    },
    (error) => {
      if (error.status === 404) put(notice, noData(`${error.message}.`));
      else if (worker) put(notice, outdated(error, seenAt));
      else
        put(
          notice,
          failure(error, () => look.now()),
        );
    },
  );
  const tellStory = every(
    STORY_SECONDS,
    async (signal) => put(story, ...[await storyOf(worker?.instance_id ?? workerId, signal)].flat()),
    (error) => put(story, failure(error)),
  );
  const deaf = listen(({ kind, data }) => {
    if (kind === "gap" || data?.worker_id === workerId || data?.instance_id === worker?.instance_id) {
      look.now();
      tellStory.now();
    }
  });
  return () => {
    deaf();
    look.stop();
    tellStory.stop();
    charts.destroy();
  };
}

function showWorker(worker, head, notice, facts) {
  const { level, word, reason } = why(worker, null);
  put(head, badge(level, word), h("span", { class: "reason" }, reason));
  const silent =
    worker.state === "stale"
      ? stale(`not heard for ${duration(worker.heartbeat_age_seconds)}. What is below is of then.`)
      : "";
  put(notice, silent);
  put(facts, ...factsOf(worker));
}

function factsOf(worker) {
  const engine = worker.engine;
  const load = worker.load ?? {};
  const text = (value, none) => value ?? missing(none);
  return [
    fact("Heard", shown(worker.heartbeat_age_seconds, ago, "never")),
    fact("Model", text(worker.model_id, "no model")),
    fact("Engine", engine ? `${engine.kind ?? "engine"} ${words(engine.state)}` : missing("no engine")),
    fact(
      "Requests",
      shown(engine?.requests_running, count),
      " running, ",
      shown(engine?.requests_waiting, count),
      " waiting",
    ),
    fact("KV cache", shown(engine?.kv_cache_usage_ratio, percent)),
    fact("GPUs", shown(load.gpu_count, count), " · ", shown(load.gpu_utilization_ratio, percent), " in use"),
    fact("Host", text(worker.host_name, "not known"), " · CPU ", shown(load.cpu_utilization_ratio, percent)),
    fact("Agent", text(worker.agent_version, "not known")),
    fact(
      "Clock skew",
      shown(worker.clock_skew_seconds, (value) => `${value >= 0 ? "+" : "−"}${duration(Math.abs(value))}`),
    ),
    fact(
      "Heartbeats",
      count(worker.heartbeats),
      worker.heartbeats_missed ? `, ${count(worker.heartbeats_missed)} missed` : "",
    ),
    fact("Restarts", count(worker.restarts)),
    fact(
      "Known for",
      worker.first_seen_at ? duration(secondsSince(worker.first_seen_at)) : missing("not in the database yet"),
    ),
  ];
}

// Oldest first, as control answers them: the newest, which matter most, are at the end of the last part.
async function transitionsOf(instanceId, signal) {
  const steps = [];
  let cursor = null;
  do {
    const path = `/instances/${encodeURIComponent(instanceId)}/transitions`;
    const part = await ask(query(path, { limit: STORY_PART, cursor }), { signal });
    steps.push(...part.transitions);
    cursor = part.next_cursor;
  } while (cursor !== null);
  return steps;
}

async function storyOf(instanceId, signal) {
  try {
    const steps = await transitionsOf(instanceId, signal);
    const shown = h("ol", { class: "steps" }, ...steps.slice(-STORY_LINES).map(step));
    const older = steps.length - STORY_LINES;
    return older > 0 ? [h("p", { class: "found" }, `${count(older)} older steps are not shown.`), shown] : shown;
  } catch (error) {
    if (error.status !== 404) throw error;
    return noData("control did not make this worker, so that there is no story of its instance.");
  }
}

function step(one) {
  return h(
    "li",
    {},
    time(one.at),
    " ",
    h("strong", {}, words(one.to_state)),
    " ",
    one.detail || words(one.reason),
    " ",
    h("small", {}, one.actor),
  );
}
