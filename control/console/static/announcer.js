// Says to screen readers what changed, not more often than one can listen to.

import { words } from "./format.js";
import { listen } from "./live.js";

const PAUSE_MILLISECONDS = 1500;
const MOST_NAMES = 3;
const place = document.getElementById("announcer");

export function announce(text) {
  place.textContent = text;
}

export function announceEvents() {
  let waiting = new Map();
  let timer = 0;
  listen((event) => {
    const said = sentence(event);
    if (!said) return;
    waiting.set(said.what, [...(waiting.get(said.what) ?? []), said.who]);
    timer ||= setTimeout(() => {
      announce([...waiting].map(([what, names]) => `${listed(names)} ${what}.`).join(" "));
      waiting = new Map();
      timer = 0;
    }, PAUSE_MILLISECONDS);
  });
}

function sentence({ kind, data }) {
  if (kind === "worker") return { who: data.worker_id, what: data.state ? `is ${words(data.state)}` : "was forgotten" };
  if (kind === "lifecycle") return { who: data.instance_id, what: `is ${words(data.state)}` };
  return null;
}

const listed = (names) =>
  names.length > MOST_NAMES
    ? `${names.slice(0, MOST_NAMES).join(", ")} and ${names.length - MOST_NAMES} more:`
    : names.join(", ");
