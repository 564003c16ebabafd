// Deployments: what was asked for, how far it is, and what it costs.

import { ask, query } from "./api.js";
import { h, keyed, put } from "./dom.js";
import { ago, duration, missing, money, secondsSince, words } from "./format.js";
import { listen } from "./live.js";
import { badge, fill, row, shares, table, title } from "./parts.js";
import { every } from "./polling.js";
import { failure, loading, noData, outdated } from "./states.js";

const QUIET_SECONDS = 20;
const BUSY_SECONDS = 2;
const PART = 50;
const MOST_INSTANCES = 200;
const COMING = ["provisioning", "booting", "installing", "starting"];
const LEVELS = {
  ready: "good",
  startup_failed: "bad",
  worker_dead: "bad",
  draining: "warn",
  terminating: "warn",
  terminated: "none",
  archived: "none",
};
const levelOf = (state) => LEVELS[state] ?? "load";
const isOver = ({ states }) => Object.keys(states).every((state) => LEVELS[state] === "none");
const isComing = ({ states }) => COMING.some((state) => states[state]);

export function deploymentsView(place) {
  const notice = h("div", { class: "notices" });
  const list = h("div", { class: "deployments" });
  const body = h("div", {}, loading());
  const details = new Map();
  let wanted = PART;
  let all = null;
  let readAt = 0;
  place.append(title("Deployments"), notice, body);

  async function read(signal) {
    const answer = await ask(query("/deployments", { limit: wanted }), { signal });
    const busy = answer.deployments.filter((one) => isComing(one) || details.get(one.deployment_id)?.open);
    // Of those on their way, how far they are.
    const found = await Promise.all(busy.map((one) => ask(`/deployments/${one.deployment_id}`, { signal })));
    all = answer.deployments.map((one) => found.find(({ deployment_id: id }) => id === one.deployment_id) ?? one);
    readAt = Date.now();
    put(notice, "");
    show(answer.next_cursor !== null);
    soon(busy.some(isComing));
  }

  function show(more) {
    if (!all.length) {
      body.replaceChildren(
        noData("nothing was deployed yet. fleetpulse deploy makes instances; the API's POST /deployments too."),
      );
      return;
    }
    const shown = [...all.filter((one) => !isOver(one)), ...all.filter(isOver)];
    keyed(
      list,
      shown,
      (one) => one.deployment_id,
      (one) => card(one, details, () => poll.now()),
      update,
    );
    if (!list.isConnected) body.replaceChildren(list);
    const further = () => {
      wanted = Math.min(1000, wanted * 4);
      poll.now();
    };
    body.querySelector(".more")?.remove();
    if (more && wanted < 1000)
      body.append(h("button", { type: "button", class: "quiet more", onclick: further }, "Show older ones"));
  }

  let timer = 0;
  function soon(busy) {
    clearTimeout(timer);
    if (busy) timer = setTimeout(() => poll.now(), BUSY_SECONDS * 1000);
  }

  const poll = every(QUIET_SECONDS, read, (error) => {
    if (all) put(notice, outdated(error, readAt));
    else body.replaceChildren(failure(error, () => poll.now()));
  });
  const deaf = listen(({ kind }) => (["lifecycle", "archived", "gap"].includes(kind) ? poll.now() : undefined));
  return () => {
    deaf();
    clearTimeout(timer);
    poll.stop();
  };
}

function card(one, details, opened) {
  const id = `deployment-${one.deployment_id}`;
  const more = h("details", {}, h("summary", {}, "Instances"), h("div", {}));
  const element = h(
    "article",
    { class: "deployment", "aria-labelledby": id },
    h("header", {}, h("h2", { id }, one.name), h("span", { class: "badges" }), h("p", { class: "what" })),
    h("div", { class: "way" }),
    more,
  );
  more.addEventListener("toggle", () => {
    details.set(one.deployment_id, more);
    if (more.open) opened();
  });
  return element;
}

function update(element, one) {
  const [head, way, more] = element.children;
  const what = head.children[2];
  const states = Object.entries(one.states);
  put(
    head.children[1],
    ...states.map(([state, number]) =>
      badge(levelOf(state) === "load" ? "unknown" : levelOf(state), `${number} ${words(state)}`),
    ),
  );
  put(
    what,
    `${one.model ?? "no model"} · ${one.instance_count} × ${one.instance_type} at ${one.provider}, ${one.zone} · ${ago(secondsSince(one.created_at))} by ${one.created_by}`,
  );
  put(
    way,
    ...(isComing(one) && one.percent !== undefined
      ? progress(one)
      : states.length > 1
        ? [
            shares(
              states.map(([state, number]) => ({ level: levelOf(state), number })),
              one.instance_count,
            ),
          ]
        : []),
  );
  if (more.open) showInstances(more.lastElementChild, one);
}

function progress({ name, percent, expected_remaining_seconds: rest }) {
  const bar = h("progress", { max: 100, value: percent, "aria-label": `Progress of ${name}` });
  const left = rest === null ? "how long is not known yet" : `about ${duration(rest)} left`;
  return [
    bar,
    h("span", { class: "number" }, percent === null ? "" : `${Math.round(percent)} %`),
    h("small", {}, left),
  ];
}

const COLUMNS = [
  { label: "Instance", heading: true },
  { label: "State" },
  { label: "Since" },
  { label: "Progress", number: true },
  { label: "An hour", number: true },
  { label: "Why" },
];

async function showInstances(place, one) {
  try {
    const { instances } = await ask(query("/instances", { deployment: one.deployment_id, limit: MOST_INSTANCES }));
    const parts = place.parts ?? (place.parts = table(`Instances of ${one.name}`, COLUMNS));
    const way = new Map((one.instances ?? []).map((each) => [each.instance_id, each]));
    keyed(
      parts.body,
      instances,
      (each) => each.instance_id,
      () => row(COLUMNS),
      (element, each) => {
        const percent = way.get(each.instance_id)?.percent;
        fill(element, [
          [h("a", { href: `#/worker/${encodeURIComponent(each.instance_id)}` }, each.instance_id)],
          [badge(levelOf(each.state) === "load" ? "unknown" : levelOf(each.state), words(each.state))],
          [ago(secondsSince(each.state_since))],
          [percent === null || percent === undefined ? missing("not on its way") : `${Math.round(percent)} %`],
          [each.price_per_hour === null ? missing("no price") : money(each.price_per_hour, each.currency)],
          [each.failure ?? ""],
        ]);
      },
    );
    if (!parts.whole.isConnected) place.replaceChildren(parts.whole);
  } catch (error) {
    place.replaceChildren(failure(error));
  }
}
