// What happens, as it happens; and what control did, from its log.

import { ask, query } from "./api.js";
import { h, keyed, put } from "./dom.js";
import { duration, missing, time, words } from "./format.js";
import { listen, live } from "./live.js";
import { badge, fill, row, section, table, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, noData } from "./states.js";

const PART = 50;
const LOOK_SECONDS = 15;
const LEVELS = {
  alive: "good",
  ready: "good",
  stale: "bad",
  worker_dead: "bad",
  startup_failed: "bad",
  never_seen: "unknown",
};
const levelOf = (state) => LEVELS[state] ?? "unknown";

const EVENT_COLUMNS = [
  { label: "Time" },
  { label: "Who", heading: true },
  { label: "Is now" },
  { label: "Was" },
  { label: "Why" },
];
const ACTION_COLUMNS = [
  { label: "Time" },
  { label: "Action", heading: true },
  { label: "Of" },
  { label: "Outcome" },
  { label: "By" },
  { label: "Took", number: true },
];

export function eventsView(place, session) {
  const happening = happenings();
  place.append(title("Events"), section("As they happen", happening.element));
  const log = session.operator ? actionLog() : null;
  if (log) place.append(section("Action log", log.element));
  return () => {
    happening.stop();
    log?.stop();
  };
}

function happenings() {
  const parts = table("Events since this page was opened, newest first", EVENT_COLUMNS);
  const under = h("div", {});
  const show = () => {
    const events = live.recent.filter(({ kind }) => kind !== "connection");
    keyed(
      parts.body,
      events,
      ({ id, kind }) => `${id} ${kind}`,
      () => row(EVENT_COLUMNS),
      (element, event) => fill(element, told(event)),
    );
    parts.whole.hidden = !events.length;
    put(under, ...(events.length ? [] : [noData("nothing has happened since this page was opened.")]));
  };
  const deaf = listen(show);
  show();
  return { element: h("div", {}, parts.whole, under), stop: deaf };
}

function told({ kind, data, at }) {
  const when = time(at.toISOString());
  if (kind === "gap")
    return [
      when,
      "events",
      badge("warn", "missed"),
      "",
      "The connection was away for too long; what is shown elsewhere was read anew.",
    ];
  if (kind === "archived") return [when, data.instance_id, badge("unknown", "archived"), "", ""];
  const { state, previous_state: before } = data;
  const now = state ? badge(levelOf(state), words(state)) : badge("unknown", "forgotten");
  const who = data.worker_id ?? data.instance_id;
  return [
    when,
    h("a", { href: `#/worker/${encodeURIComponent(who)}` }, who),
    now,
    before ? words(before) : missing("new"),
    kind === "worker" ? "by its heartbeats" : words(data.reason),
  ];
}

function actionLog() {
  const parts = table("What control did, newest first", ACTION_COLUMNS);
  const under = h("div", {});
  const asked = { limit: PART };
  const poll = every(
    LOOK_SECONDS,
    async (signal) => {
      const { actions, next_cursor: cursor } = await ask(query("/actions", asked), { signal });
      parts.whole.hidden = !actions.length;
      keyed(
        parts.body,
        actions,
        (one) => one.action_id,
        () => row(ACTION_COLUMNS),
        (element, one) => fill(element, act(one)),
      );
      const more = () => {
        asked.limit = Math.min(1000, asked.limit * 4);
        poll.now();
      };
      if (!actions.length) put(under, noData("control did nothing yet."));
      else if (cursor !== null && asked.limit < 1000)
        under.replaceChildren(h("button", { type: "button", class: "quiet", onclick: more }, "Show older ones"));
      else put(under, "");
    },
    (error) =>
      put(
        under,
        failure(error, () => poll.now()),
      ),
  );
  return { element: h("div", {}, parts.whole, under), stop: poll.stop };
}

function act(one) {
  return [
    time(one.at),
    words(one.action),
    one.instance_id ?? one.provider ?? missing("the whole"),
    one.succeeded
      ? badge("good", "done")
      : [badge("bad", "failed"), one.detail.error ? h("small", {}, one.detail.error) : null],
    one.actor,
    one.duration_seconds === null ? missing() : duration(one.duration_seconds),
  ];
}
