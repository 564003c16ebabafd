// What machines cost while they served, were idle, not ready, dead, or nobody's; and what a token cost with all of that.

import { ask, query } from "./api.js";
import { h, keyed, put } from "./dom.js";
import { count, duration, missing, money, percent, shown } from "./format.js";
import { fill, row, section, shares, table } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated } from "./states.js";

const LOOK_SECONDS = 30;
const MOST_ROWS = 100;
const PARTS = { serving: "good", idle: "warn", unready: "unknown", dead: "bad", orphan: "bad" };
const COLUMNS = [
  { label: "Of", heading: true },
  { label: "Machines", number: true },
  { label: "What they were" },
  { label: "Idle", number: true },
  { label: "Cost", number: true },
  { label: "Tokens", number: true },
  { label: "A million tokens", number: true },
];

// asked: { window (seconds), group }. By machine where requests are shown by instance, else by model.
export function costsOf(place, asked) {
  const parts = table("Costs of machines by what they were, most hours first", COLUMNS);
  const sums = h("p", { class: "sums" });
  const under = h("div", {}, loading());
  let readAt = 0;
  parts.whole.hidden = true;
  place.append(section("Where the money goes", sums, parts.whole, under));

  return every(
    LOOK_SECONDS,
    async (signal) => {
      const by = asked.group === "instance" ? "machine" : "model";
      const found = await ask(query("/usage/costs", { window_s: asked.window, group_by: by }), { signal });
      readAt = Date.now();
      const { rows } = found;
      parts.whole.hidden = !rows.length;
      put(sums, Object.entries(found.totals).map(told).join(" "));
      put(under, ...(rows.length ? [] : [noData("there was no machine in this time.")]));
      if (rows.length > MOST_ROWS || found.truncated)
        put(under, noData(`these are the ${MOST_ROWS} with the most hours; what is shown is not all.`));
      keyed(
        parts.body,
        rows.slice(0, MOST_ROWS),
        (one) => JSON.stringify([by, one.model, one.instance_id, one.machine_id, one.currency]),
        () => row(COLUMNS),
        (element, one) => fill(element, cells(one, by)),
      );
    },
    (error) => put(under, readAt ? outdated(error, readAt) : failure(error)),
  );
}

function told([currency, costs]) {
  const all = sum(costs);
  const idle = all ? `, ${percent(costs.idle / all)} of it idle and ${percent(costs.serving / all)} serving` : "";
  return `${money(all, currency)} in all${idle}.`;
}

const sum = (parts) => Object.values(parts).reduce((all, value) => all + value, 0);

function cells(one, by) {
  const { seconds, currency } = one;
  const was = Object.entries(PARTS).filter(([part]) => seconds[part] > 0);
  const tokens = one.input_tokens === null ? null : one.input_tokens + (one.output_tokens ?? 0);
  return [
    by === "model" ? [one.model ?? "no model"] : machine(one),
    [count(one.machines)],
    [
      shares(
        was.map(([part, level]) => ({ level, number: seconds[part] })),
        sum(seconds),
      ),
      h("small", {}, was.map(([part]) => `${part} ${duration(seconds[part])}`).join(", ")),
    ],
    [percent(one.idle_ratio)],
    [one.costs ? money(sum(one.costs), currency) : missing("no price is known")],
    [shown(tokens, count, "no request is known of")],
    [one.cost_per_million_tokens === null ? missing("not known") : money(one.cost_per_million_tokens, currency)],
  ];
}

function machine(one) {
  const what = h("small", {}, [one.instance_type, one.model].filter(Boolean).join(" · ") || one.provider);
  if (one.instance_id === null) return [h("span", {}, one.machine_id), what];
  return [h("a", { href: `#/worker/${encodeURIComponent(one.instance_id)}` }, one.instance_id), what];
}
