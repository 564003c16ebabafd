// The page: who is logged in, which view is shown, and what is said above all views.

import { alertsView } from "./alerts.js";
import { announce, announceEvents } from "./announcer.js";
import { ask, whenLoggedOut } from "./api.js";
import { deploymentsView } from "./deployments.js";
import { h, put, set } from "./dom.js";
import { eventsView } from "./events.js";
import { fleetView } from "./fleet.js";
import { connect, disconnect, listen, live } from "./live.js";
import { loginView } from "./login.js";
import { failure, stale } from "./states.js";
import { usageView } from "./usage.js";
import { workerView } from "./worker.js";

const VIEWS = [
  { path: "", label: "Fleet", view: fleetView, operators: true },
  { path: "deployments", label: "Deployments", view: deploymentsView },
  { path: "events", label: "Events", view: eventsView },
  { path: "usage", label: "Usage", view: usageView },
  { path: "alerts", label: "Alerts", view: alertsView, operators: true },
];
const WORKER = "worker";

const main = document.getElementById("main");
const navigation = document.getElementById("navigation");
const who = document.getElementById("who");
const notices = document.getElementById("notices");

let session = null;
let leave = () => {};

// Whether this browser has logged in, so that a stranger's is not refused before it has asked for anything.
const LOGGED_IN = "fleetpulse-logged-in";

async function start() {
  leave();
  if (!localStorage.getItem(LOGGED_IN)) return logIn();
  try {
    session = await ask("/sessions");
  } catch (error) {
    session = null;
    if (error.status === 401) return logIn();
    main.replaceChildren(failure(error, start));
    setTimeout(() => (session ? undefined : start()), 5000);
    return undefined;
  }
  if (!session.scopes.some((scope) => scope === "read" || scope === "admin")) {
    return logIn("This key has no scope for reading.");
  }
  connect(checkSession);
  showFrame();
  return show(false);
}

async function checkSession() {
  try {
    await ask("/sessions");
  } catch (error) {
    if (error.status === 401) logIn("The session is over.");
  }
}

function logIn(reason = "") {
  leave();
  leave = () => {};
  session = null;
  localStorage.removeItem(LOGGED_IN);
  disconnect();
  navigation.hidden = true;
  put(who, "");
  put(notices, "");
  document.title = "Log in · fleetpulse";
  main.replaceChildren(
    loginView(reason, () => {
      localStorage.setItem(LOGGED_IN, "yes");
      return start();
    }),
  );
}

async function logOut() {
  try {
    await ask("/sessions", { method: "DELETE" });
  } catch (error) {
    if (error.status !== 401) return announce(error.message);
  }
  return logIn();
}

const mine = () => VIEWS.filter((one) => session.operator || !one.operators);

function showFrame() {
  navigation.hidden = false;
  navigation.replaceChildren(
    h("ul", {}, ...mine().map((one) => h("li", {}, h("a", { href: `#/${one.path}` }, one.label)))),
  );
  who.replaceChildren(
    h("span", { class: "live", id: "live" }),
    h("span", { class: "actor", title: "who is logged in" }, session.actor.replace(/^user:/, "")),
    h("button", { type: "button", class: "quiet", onclick: logOut }, "Log out"),
  );
  showConnection();
}

function showConnection() {
  const sign = document.getElementById("live");
  if (!sign) return;
  set(sign, { class: `live ${live.connected ? "on" : "off"}` });
  put(sign, live.connected ? "live" : "reconnecting …");
  const lost = live.wasConnected && !live.connected;
  put(notices, lost ? stale("The connection for live events is lost; it is being made anew.") : "");
}

function route() {
  const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { name: decodeURIComponent(name), rest: decodeURIComponent(rest.join("/")) };
}

function show(moved = true) {
  if (!session) return;
  leave();
  const { name, rest } = route();
  const found = mine().find((one) => one.path === name) ?? mine()[0];
  const isWorker = name === WORKER && rest && session.operator;
  for (const link of navigation.querySelectorAll("a")) {
    const here = link.getAttribute("href") === `#/${isWorker ? "" : found.path}`;
    set(link, { "aria-current": here ? (isWorker ? "true" : "page") : null });
  }
  document.title = `${isWorker ? rest : found.label} · fleetpulse`;
  const place = h("div", { class: "view" });
  main.replaceChildren(place);
  leave = (isWorker ? workerView(place, rest, session) : found.view(place, session)) ?? (() => {});
  if (!moved) return;
  window.scrollTo(0, 0);
  place.querySelector("h1")?.focus();
}

whenLoggedOut((reason) => (session ? logIn(reason) : undefined));
window.addEventListener("hashchange", () => show());
// A link to #main is for the keyboard and no view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
listen((event) => (event.kind === "connection" ? showConnection() : undefined));
announceEvents();
start();
