// What the fleet's views read: workers by their heartbeats, and what only the database knows of them.

import { ask, query } from "./api.js";

export const HISTORY_SECONDS = 3600;
// Of a small fleet the samples themselves are read, of a large one its workers' minutes.
const SMALL_FLEET = 64;
const SAMPLES_SECONDS = 45;
const MINUTES_SECONDS = 240;

export const workers = (signal) => ask("/workers", { signal });

// Hottest GPU and power of each worker: Map worker id → { hottest, limit, watts }, from its newest readings.
export async function temperatures(size, signal) {
  return size <= SMALL_FLEET ? fromSamples(signal) : fromMinutes(signal);
}

async function fromSamples(signal) {
  const { rows } = await ask(
    query("/gpu/activity", {
      window_s: SAMPLES_SECONDS,
      granularity: "second",
      fields: "temperature_celsius,temperature_limit_celsius,power_watts",
    }),
    { signal },
  );
  const newest = new Map(rows.map((row) => [`${row.worker_id} ${row.gpu_id}`, row]));
  const found = new Map();
  for (const row of newest.values())
    add(found, row, row.temperature_celsius, row.temperature_limit_celsius, row.power_watts);
  return found;
}

async function fromMinutes(signal) {
  const { rows } = await ask(
    query("/gpu/activity", {
      window_s: MINUTES_SECONDS,
      granularity: "minute",
      group_by: "worker",
      fields: "temperature_celsius_max,temperature_limit_celsius_min,power_watts",
    }),
    { signal },
  );
  const newest = new Map(rows.map((row) => [row.worker_id, row]));
  const found = new Map();
  for (const row of newest.values()) {
    const power = row.power_watts === null ? null : row.power_watts * row.series_count;
    add(found, row, row.temperature_celsius_max, row.temperature_limit_celsius_min, power);
  }
  return found;
}

function add(found, row, temperature, limit, power) {
  const one = found.get(row.worker_id) ?? { hottest: null, limit: null, watts: null };
  if (temperature !== null && (one.hottest === null || temperature > one.hottest))
    Object.assign(one, { hottest: temperature, limit });
  if (power !== null) one.watts = (one.watts ?? 0) + power;
  found.set(row.worker_id, one);
}

const HISTORIES = [
  ["/gpu/activity", "utilization_ratio,temperature_celsius_max,power_watts"],
  ["/engine/activity", "requests_running,requests_waiting,generation_tokens_per_second,kv_cache_usage_ratio"],
];

// The whole fleet by the minute: { gpu, engine } with rows in order of time.
export async function history(signal) {
  const [gpu, engine] = await Promise.all(
    HISTORIES.map(([path, fields]) =>
      ask(query(path, { window_s: HISTORY_SECONDS, granularity: "minute", group_by: "fleet", fields }), { signal }),
    ),
  );
  return { gpu, engine };
}
