// What is wrong now: by control itself, and by Alertmanager where one is known.

import { ask } from "./api.js";
import { h, keyed, put } from "./dom.js";
import { count, duration, missing, secondsSince } from "./format.js";
import { listen } from "./live.js";
import { badge, fill, row, section, table, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated, state } from "./states.js";

const LOOK_SECONDS = 5;
const LEVELS = { critical: "bad", page: "bad", warning: "warn" };
const COLUMNS = [
  { label: "Alert", heading: true },
  { label: "Severity" },
  { label: "Of" },
  { label: "For" },
  { label: "What" },
];
const LISTS = { worker: "#/", instance: "#/deployments" };
const PAGES = { worker: "#/worker/", instance: "#/worker/" };

export function alertsView(place) {
  const notice = h("div", { class: "notices" });
  const own = h("div", {}, loading());
  const elsewhere = h("div", {}, loading());
  const tables = [
    table("Alerts of control, worst first", COLUMNS),
    table("Alerts of Alertmanager, newest first", COLUMNS),
  ];
  let readAt = 0;
  place.append(title("Alerts"), notice, section("Seen by control", own), section("Alertmanager", elsewhere));

  const poll = every(
    LOOK_SECONDS,
    async (signal) => {
      const answer = await ask("/alerts", { signal });
      readAt = Date.now();
      put(notice, "");
      showOwn(own, tables[0], answer);
      showElsewhere(elsewhere, tables[1], answer.alertmanager);
    },
    (error) => {
      if (readAt) return put(notice, outdated(error, readAt));
      own.replaceChildren(failure(error, () => poll.now()));
      return put(elsewhere, "");
    },
  );
  const deaf = listen(({ kind }) => (kind === "connection" ? undefined : poll.now()));
  return () => {
    deaf();
    poll.stop();
  };
}

function showOwn(place, parts, { alerts }) {
  if (!alerts.length) {
    place.replaceChildren(state("good", "control sees nothing wrong."));
    return;
  }
  list(parts, alerts, (one) => [one.name, one.severity, subject(one), one.since_seconds, [one.detail]]);
  if (!parts.whole.isConnected) place.replaceChildren(parts.whole);
}

function subject({ kind, subject: name, count: number }) {
  if (number > 1) return h("a", { href: LISTS[kind] ?? "#/events" }, `${count(number)} ${kind}s`);
  if (name === null) return missing("the whole");
  return PAGES[kind] ? h("a", { href: `${PAGES[kind]}${encodeURIComponent(name)}` }, name) : name;
}

function showElsewhere(place, parts, { state: answered, detail, alerts }) {
  if (answered === "not_configured") {
    place.replaceChildren(noData("no Alertmanager is known. FLEETPULSE_CONTROL_ALERTMANAGER_URL names it."));
  } else if (answered === "unreachable") {
    place.replaceChildren(
      state("error", `Alertmanager cannot be asked, so that nothing is known of its alerts (${detail}).`),
    );
  } else if (!alerts.length) {
    place.replaceChildren(state("good", "Alertmanager has no alert firing."));
  } else {
    const runbook = ({ runbook_url: url }) => (url ? h("a", { href: url, rel: "noreferrer" }, "runbook") : null);
    list(parts, alerts, (one) => [
      one.name,
      one.severity,
      one.subject ?? missing("the whole"),
      one.since && secondsSince(one.since),
      [one.summary, " ", runbook(one)],
    ]);
    if (!parts.whole.isConnected) place.replaceChildren(parts.whole);
  }
}

function list(parts, alerts, read) {
  keyed(
    parts.body,
    alerts,
    (one) => JSON.stringify([one.name, one.subject, one.severity, one.since]),
    () => row(COLUMNS),
    (element, one) => {
      const [name, severity, of, seconds, what] = read(one);
      fill(element, [
        name,
        badge(LEVELS[severity] ?? "unknown", severity),
        of,
        seconds === null ? missing("not known") : duration(seconds),
        what,
      ]);
    },
  );
}
