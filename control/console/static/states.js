// The three ways in which there is nothing to show, each with a look of its own: no data, stale, error.

import { h, icon } from "./dom.js";
import { duration } from "./format.js";

const SIGNS = {
  nodata: "M2 8h12",
  stale: "M8 4v4l3 2M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0",
  error: "M8 4.500v4.500M8 11.500v.100M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0",
  good: "M3.500 8.500l3 3 6-7",
};
const LABELS = { nodata: "No data", stale: "Stale", error: "Error", good: "All well" };

export function state(kind, text, ...more) {
  return h(
    "div",
    { class: `state state-${kind}`, role: kind === "error" ? "alert" : null },
    icon(SIGNS[kind]),
    h("p", {}, h("strong", {}, `${LABELS[kind]}: `), text),
    ...more,
  );
}

export const noData = (text, ...more) => state("nodata", text, ...more);
export const stale = (text, ...more) => state("stale", text, ...more);

export function failure(error, again) {
  if (error.status === 403) return state("error", "this is for the operators of the fleet.");
  return state(
    "error",
    `${sentence(error.message)}`,
    again ? h("button", { type: "button", class: "quiet", onclick: again }, "Try again") : null,
  );
}

export const loading = () => h("p", { class: "loading", role: "status" }, "Loading …");

// Something that was read once and cannot be read now: what is shown is of then.
export const outdated = (error, at) =>
  stale(`${sentence(error.message)} What you see is ${duration((Date.now() - at) / 1000)} old.`);

const sentence = (text) => `${text}${/[.!?]$/.test(text) ? "" : "."}`;
