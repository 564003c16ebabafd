// Numbers for people. What was not measured is told as that and is never a zero.

import { h } from "./dom.js";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export function missing(why = "not measured") {
  return h(
    "span",
    { class: "missing", title: why },
    h("span", { "aria-hidden": "true" }, "–"),
    h("span", { class: "unseen" }, why),
  );
}

// The text of a number, or the sign for one that is not there.
export const shown = (value, format, why) => (isNumber(value) ? format(value) : missing(why));

export const percent = (ratio) => {
  const whole = Math.round(ratio * 100);
  return `${whole === 0 && ratio > 0 ? "<1" : whole === 100 && ratio < 1 ? 99 : whole} %`;
};
export const count = (value) => (Math.abs(value) < 10 && value % 1 ? value.toFixed(1) : grouped.format(value));
export const celsius = (value) => `${Math.round(value)} °C`;
export const watts = (value) => {
  const size = Math.abs(value);
  if (size >= 2e6) return `${(value / 1e6).toFixed(1)} MW`;
  if (size >= 2e3) return `${(value / 1e3).toFixed(size < 1e5 ? 1 : 0)} kW`;
  return `${Math.round(value)} W`;
};

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let rest = value;
  let unit = 0;
  while (Math.abs(rest) >= 1000 && unit < units.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return `${rest < 10 && unit ? rest.toFixed(1) : Math.round(rest)} ${units[unit]}`;
}

export const short = (value) => {
  if (Math.abs(value) >= 1e9) return `${(value / 1e9).toFixed(1)} G`;
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (Math.abs(value) >= 1e4) return `${(value / 1e3).toFixed(0)} k`;
  return count(value);
};

export function duration(seconds) {
  if (seconds < 0.95) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

// Ages jump about below a second, and nobody needs to know how.
export const ago = (seconds) => (seconds < 0.95 ? "now" : `${duration(seconds)} ago`);
export const secondsSince = (text) => (Date.now() - Date.parse(text)) / 1000;

export const money = (value, currency) =>
  new Intl.NumberFormat("en", { style: "currency", currency, maximumFractionDigits: value < 10 ? 4 : 2 }).format(value);

export function time(text) {
  const at = new Date(text);
  const stamp = Date.now() - at < 86_400_000 ? clock.format(at) : `${day.format(at)} ${clock.format(at)}`;
  return h("time", { datetime: at.toISOString(), title: at.toLocaleString("en-GB") }, stamp);
}

export const words = (name) => name.replaceAll("_", " ");
