// The table of workers: worst first unless sorted otherwise, to be narrowed by words and by state.

import { h, keyed, put, set } from "./dom.js";
import { ago, celsius, count, missing, shown } from "./format.js";
import { badge, choices, fill, meter, row, table } from "./parts.js";
import { noData } from "./states.js";
import { LEVELS, heat, pressure } from "./why.js";

const MOST_ROWS = 200;
const byText = new Intl.Collator("en", { numeric: true }).compare;
const number = (value) => value ?? -1;

const COLUMNS = [
  { label: "Worker", heading: true, by: ({ worker }) => worker.worker_id },
  { label: "State", by: (one) => LEVELS.indexOf(one.level) },
  { label: "Running", number: true, by: ({ worker }) => number(worker.engine?.requests_running) },
  { label: "Waiting", number: true, by: ({ worker }) => number(worker.engine?.requests_waiting) },
  { label: "KV cache", by: ({ worker }) => number(worker.engine?.kv_cache_usage_ratio) },
  { label: "GPUs", number: true, by: ({ worker }) => number(worker.load?.gpu_count) },
  { label: "GPU use", by: ({ worker }) => number(worker.load?.gpu_utilization_ratio) },
  { label: "GPU memory", by: ({ worker }) => number(worker.load?.gpu_memory_utilization_ratio) },
  { label: "Hottest", number: true, by: (one) => number(one.heat?.hottest) },
  { label: "CPU", by: ({ worker }) => number(worker.load?.cpu_utilization_ratio) },
  { label: "Heard", number: true, by: ({ worker }) => number(worker.heartbeat_age_seconds) },
];
const SHOWN = [
  ["all", "All"],
  ["trouble", "Trouble"],
  ["alive", "Alive"],
  ["stale", "Stale"],
  ["never_seen", "Never seen"],
];

export function fleetTable() {
  const wanted = { text: "", shown: "all", sort: COLUMNS[1], down: false, most: MOST_ROWS };
  let judged = [];
  const columns = COLUMNS.map((column) => ({ ...column, sort: () => sortBy(column) }));
  const parts = table("Workers", columns, "fleet");
  const under = h("div", { class: "under" });
  const found = h("p", { class: "found", "aria-live": "polite" });

  const search = h("input", {
    type: "search",
    id: "fleet-search",
    placeholder: "worker, host or model",
    oninput: (event) => change({ text: event.target.value.trim().toLowerCase() }),
  });
  const tools = h(
    "div",
    { class: "tools", role: "search" },
    h("label", { for: "fleet-search" }, "Find"),
    search,
    choices("Show", "fleet-shown", SHOWN, wanted.shown, (value) => change({ shown: value })),
    found,
  );

  function change(differently) {
    Object.assign(wanted, { most: MOST_ROWS }, differently);
    render();
  }

  function sortBy(column) {
    change({ sort: column, down: wanted.sort.label === column.label ? !wanted.down : Boolean(column.number) });
  }

  function render() {
    const fitting = judged.filter((one) => fits(one, wanted));
    fitting.sort((a, b) => compare(a, b, wanted));
    columns.forEach((column, place) => {
      const sorted = column.label === wanted.sort.label;
      set(parts.head.children[place], { "aria-sort": sorted ? (wanted.down ? "descending" : "ascending") : null });
    });
    keyed(
      parts.body,
      fitting.slice(0, wanted.most),
      ({ worker }) => worker.worker_id,
      () => row(COLUMNS),
      update,
    );
    put(found, fitting.length === judged.length ? "" : `${fitting.length} of ${judged.length}`);
    if (!fitting.length) put(under, noData("no worker fits."));
    else if (fitting.length > wanted.most) {
      const more = () => change({ most: wanted.most * 5 });
      under.replaceChildren(
        h("button", { type: "button", class: "quiet", onclick: more }, `Show more of ${fitting.length}`),
      );
    } else put(under, "");
  }

  return {
    element: h("div", {}, tools, parts.whole, under),
    show(now) {
      judged = now;
      render();
    },
  };
}

function fits({ worker, level }, { text, shown: which }) {
  const isShown = which === "all" || (which === "trouble" ? level !== "good" : worker.state === which);
  return (
    isShown &&
    (!text || [worker.worker_id, worker.host_name, worker.model_id].some((name) => name?.toLowerCase().includes(text)))
  );
}

function compare(a, b, { sort, down }) {
  const [one, other] = [sort.by(a), sort.by(b)];
  const order = typeof one === "string" ? byText(one, other) : one - other;
  return (down ? -order : order) || byText(a.worker.worker_id, b.worker.worker_id);
}

function update(element, one) {
  const { worker, level, word, reason } = one;
  const load = worker.load ?? {};
  const engine = worker.engine ?? {};
  const heard = worker.state === "alive";
  const hot = heat(one.heat?.hottest, one.heat?.limit);
  // Loads of a worker that is not heard any more are of then, and look like it.
  set(element, { class: heard ? null : "faded" });
  fill(element, [
    [
      h("a", { href: `#/worker/${encodeURIComponent(worker.worker_id)}` }, worker.worker_id),
      h("small", {}, [worker.model_id, worker.host_name].filter(Boolean).join(" · ") || "no model"),
    ],
    [badge(level, word), reason ? h("small", {}, reason) : null],
    [shown(engine.requests_running, count)],
    [shown(engine.requests_waiting, count)],
    [meter(engine.kv_cache_usage_ratio, pressure(engine.kv_cache_usage_ratio))],
    [shown(load.gpu_count, count)],
    [meter(load.gpu_utilization_ratio)],
    [meter(load.gpu_memory_utilization_ratio)],
    [
      hot.level === "none"
        ? missing("no reading lately")
        : h("span", { class: `heat ${hot.level}`, title: hot.reason }, celsius(one.heat.hottest)),
    ],
    [meter(load.cpu_utilization_ratio)],
    [shown(worker.heartbeat_age_seconds, ago, "never")],
  ]);
}
