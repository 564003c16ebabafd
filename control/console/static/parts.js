// Small pieces that several pages show.

import { h, icon, put, set } from "./dom.js";
import { missing, percent } from "./format.js";

const SIGNS = {
  good: "M3.500 8.500l3 3 6-7",
  warn: "M8 3v6M8 12v.100",
  bad: "M4 4l8 8M12 4l-8 8",
  unknown: "M5.800 6a2.200 2.200 0 1 1 3.200 2c-.700.400-1 .800-1 1.500M8 12v.100",
};

export const badge = (level, word) => h("span", { class: `badge ${level}` }, icon(SIGNS[level] ?? SIGNS.unknown), word);

// A share as its number and a bar; the bar alone says nothing, so that it is for the eye only.
export function meter(ratio, level = "load", text = null) {
  if (ratio === null || ratio === undefined) return missing();
  const fill = h("span", {
    class: `fill ${level}`,
    vars: { "--share": `${Math.min(100, Math.max(0, ratio * 100))}%` },
  });
  return h(
    "span",
    { class: "meter" },
    h("span", { class: "number" }, text ?? percent(ratio)),
    h("span", { class: "track", "aria-hidden": "true" }, fill),
  );
}

export function fact(term, ...value) {
  return h("div", { class: "fact" }, h("dt", {}, term), h("dd", {}, ...value));
}

export const title = (text, ...more) => h("div", { class: "title" }, h("h1", { tabindex: "-1" }, text), ...more);

export function section(heading, ...content) {
  const id = `section-${heading.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return h("section", { "aria-labelledby": id, class: "section" }, h("h2", { id }, heading), ...content);
}

// A table that is a list of cards on a phone. The roles are said, because some browsers forget them with the layout.
export function table(caption, columns, className = "") {
  const head = h("tr", { role: "row" });
  for (const column of columns) {
    const cell = h("th", { scope: "col", role: "columnheader", class: column.number ? "number" : null });
    cell.append(
      column.sort ? h("button", { type: "button", class: "sort", onclick: column.sort }, column.label) : column.label,
    );
    head.append(cell);
  }
  const body = h("tbody", { role: "rowgroup" });
  const whole = h(
    "table",
    { role: "table", class: `cards ${className}` },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, head),
    body,
  );
  return { whole, head, body };
}

export function row(columns) {
  const element = h("tr", { role: "row" });
  for (const column of columns) {
    const heading = column.heading ? "th" : "td";
    const cell = h(heading, { role: column.heading ? "rowheader" : "cell", class: column.number ? "number" : null });
    if (column.heading) cell.setAttribute("scope", "row");
    cell.dataset.label = column.label;
    element.append(cell);
  }
  return element;
}

export function fill(element, values) {
  values.forEach((value, place) => put(element.children[place], ...(Array.isArray(value) ? value : [value])));
}

// A few choices of which one holds: radio buttons, so that the arrow keys work.
export function choices(legend, name, options, chosen, choose) {
  const inputs = options.map(([value, label]) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => choose(value) }),
      h("span", {}, label),
    ),
  );
  return h("fieldset", { class: "choices" }, h("legend", { class: "unseen" }, legend), ...inputs);
}

// Says how many of the whole are in which state.
export function shares(parts, whole) {
  const bar = h("span", { class: "shares", "aria-hidden": "true" });
  for (const { level, number } of parts) {
    if (number)
      bar.append(h("span", { class: `fill ${level}`, vars: { "--share": `${(100 * number) / Math.max(1, whole)}%` } }));
  }
  return bar;
}

export function busy(element, value) {
  set(element, { "aria-busy": value ? "true" : null });
}
