// A chart over time, drawn by uPlot: gaps stay gaps, colours follow the theme, arrow keys read values.

import { h, put } from "./dom.js";
import { noData } from "./states.js";

const COLORS = 8;
const DASHED = [4, 4];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const clock = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const time = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

// Points { time (seconds), value } of each series in order of time → uPlot's columns. Where two readings are further
// apart than gapSeconds a null goes between them; that another series has a point there alone is no gap.
export function columns(series, gapSeconds) {
  const tables = series.map(({ points }) => {
    const times = [];
    const values = [];
    points.forEach((point, place) => {
      const before = points[place - 1];
      if (before && point.time - before.time > gapSeconds) {
        times.push((point.time + before.time) / 2);
        values.push(null);
      }
      times.push(point.time);
      values.push(point.value ?? null);
    });
    return [times, values];
  });
  if (!tables.length) return [[]];
  return tables.length === 1 ? tables[0] : window.uPlot.join(tables);
}

export class Chart {
  // options: { title, format(value), most: upper end of the scale, height, sync }
  constructor(options) {
    this.options = options;
    this.plot = null;
    this.shape = "";
    this.frame = h("div", { class: "plot", tabindex: "0", role: "group", onkeydown: (event) => this.step(event) });
    this.reading = h("p", { class: "reading", "aria-live": "polite" });
    this.latest = h("span", { class: "latest" });
    this.figure = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("span", { class: "name" }, options.title), this.latest),
      this.frame,
      this.reading,
    );
    this.watcher = new ResizeObserver(() => this.resize());
    this.watcher.observe(this.frame);
    this.repaint = () => this.draw(true);
    dark.addEventListener("change", this.repaint);
  }

  // shown: { from, to (seconds), gapSeconds, series: [{ label, points, dashed }] }; latest is what the caption says.
  show(shown, latest = null) {
    this.shown = shown;
    put(this.latest, latest ?? "");
    this.draw(false);
  }

  instead(element) {
    this.clear();
    this.shown = null;
    put(this.latest, "");
    this.frame.replaceChildren(element);
    this.frame.removeAttribute("tabindex");
    this.frame.removeAttribute("aria-label");
    put(this.reading, "");
  }

  draw(anew) {
    if (!this.shown) return;
    if (!window.uPlot) return this.instead(noData("the chart library is not installed."));
    const { series, from, to, gapSeconds } = this.shown;
    if (!series.some(({ points }) => points.some(({ value }) => value !== null && value !== undefined))) {
      return keepInstead(this, "nothing was measured in this time.");
    }
    const data = columns(series, gapSeconds);
    const shape = JSON.stringify(series.map(({ label, dashed }) => [label, dashed]));
    if (!this.plot || anew || shape !== this.shape) {
      this.clear();
      this.frame.replaceChildren();
      this.shape = shape;
      this.plot = new window.uPlot(this.design(series), data, this.frame);
    } else {
      this.plot.setData(data, false);
    }
    this.plot.setScale("x", { min: from, max: to });
    this.frame.tabIndex = 0;
    this.frame.setAttribute(
      "aria-label",
      `${this.options.title}: ${this.summary()} Left and right arrow keys read values.`,
    );
    return undefined;
  }

  summary() {
    const { series } = this.shown;
    return series
      .slice(0, COLORS)
      .map(({ label, points }) => {
        const values = points.map(({ value }) => value).filter((value) => value !== null && value !== undefined);
        if (!values.length) return `${label}: not measured.`;
        const [least, most] = [Math.min(...values), Math.max(...values)];
        return `${label}: now ${this.options.format(values.at(-1))}, ${this.options.format(least)} to ${this.options.format(most)}.`;
      })
      .join(" ");
  }

  design(series) {
    const { format, most, height = 150, sync, legend = true } = this.options;
    const line = {
      stroke: color("soft"),
      grid: { stroke: color("grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui",
    };
    return {
      width: Math.max(120, this.frame.clientWidth),
      height,
      padding: [8, 18, 0, 0],
      cursor: { drag: { x: false, y: false }, points: { size: 6 }, y: false, ...(sync ? { sync: { key: sync } } : {}) },
      legend: { show: legend && series.length > 0, live: true },
      scales: { x: { time: true, auto: false }, y: { range: (_, least, greatest) => scale(least, greatest, most) } },
      axes: [
        { ...line, size: 28, space: 56, values: ticks },
        { ...line, size: 60, gap: 4, values: (_, splits) => splits.map((value) => format(value)) },
      ],
      series: [
        { label: "at", value: (_, at) => (at ? clock.format(at * 1000) : "latest") },
        ...series.map(({ label, dashed }, place) => ({
          label,
          stroke: dashed ? color("bad") : color(`series-${(place % COLORS) + 1}`),
          width: 1.5,
          dash: dashed ? DASHED : undefined,
          spanGaps: false,
          // Also where a reading has a gap on both sides and would be a line without length.
          points: { size: 5, space: 30, filter: alone },
          fill: series.length === 1 ? `${color("series-1")}22` : undefined,
          value: (_, value, __, at) => legendValue(value, at, newest(this.shown.series[place]?.points ?? []), format),
        })),
      ],
    };
  }

  step(event) {
    if (!this.plot || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const times = this.plot.data[0];
    const here = this.plot.cursor.idx ?? times.length;
    const places = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: times.length - 1 };
    const place = Math.min(times.length - 1, Math.max(0, places[event.key]));
    this.plot.setCursor({ left: this.plot.valToPos(times[place], "x"), top: 10 });
    const said = this.shown.series.map(({ label }, number) => {
      const value = this.plot.data[number + 1][place];
      return value === null || value === undefined ? null : `${label} ${this.options.format(value)}`;
    });
    put(this.reading, `${time.format(times[place] * 1000)}: ${said.filter(Boolean).join(", ") || "not measured"}`);
  }

  resize() {
    if (this.plot && this.frame.clientWidth)
      this.plot.setSize({ width: this.frame.clientWidth, height: this.options.height ?? 150 });
  }

  clear() {
    this.plot?.destroy();
    this.plot = null;
    this.shape = "";
  }

  destroy() {
    this.clear();
    this.watcher.disconnect();
    dark.removeEventListener("change", this.repaint);
  }
}

function keepInstead(chart, text) {
  const { shown } = chart;
  chart.instead(noData(text));
  chart.shown = shown;
}

const newest = (points) => points.findLast(({ value }) => value !== null && value !== undefined)?.value;

// Without a cursor the newest reading.
function legendValue(value, place, latest, format) {
  const said = place === null ? latest : value;
  return said === null || said === undefined ? "–" : format(said);
}

// Readings that no line leads to or from; null draws all of them, where there is room for all.
function alone(plot, place, all) {
  if (all) return null;
  const values = plot.data[place];
  const none = (at) => values[at] === null || values[at] === undefined;
  return values.flatMap((_, at) => (!none(at) && none(at - 1) && none(at + 1) ? [at] : []));
}

function scale(least, greatest, most) {
  if (most) return [0, Math.max(most, greatest ?? 0)];
  if (least === null || greatest === null) return [0, 1];
  return [Math.min(0, least), greatest > 0 ? greatest * 1.1 : 1];
}

const hours = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const days = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

function ticks(_, splits, __, ___, increment) {
  return splits.map((at) => (increment >= 86_400 ? days : hours).format(at * 1000));
}
