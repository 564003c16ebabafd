// In which state a worker is, in one word, and why, in one sentence.

import { celsius, duration, percent } from "./format.js";

// Well before control's watchdog counts the worker as dead.
const STALLED_SECONDS = 30;
const FULL_RATIO = 0.98;
// Where the device does not tell its limit.
const HOT_CELSIUS = 80;
const TOO_HOT_CELSIUS = 87;
const MARGIN_CELSIUS = 5;

// Worst first.
export const LEVELS = ["bad", "warn", "unknown", "good"];

export function why(worker, silence) {
  if (worker.state === "never_seen") return { level: "unknown", word: "never seen", reason: neverSeen(worker) };
  if (worker.state === "stale") return { level: "bad", word: "stale", reason: silent(worker, silence) };
  return engineTrouble(worker) ?? statusOf(worker);
}

function neverSeen(worker) {
  const age = worker.recorded_age_seconds;
  const recorded = age === null ? "" : ` Its newest record is ${duration(age)} old.`;
  return `The database knows it; it was not heard since control joined the stream.${recorded}`;
}

function silent(worker, silence) {
  const age = `Silent for ${duration(worker.heartbeat_age_seconds ?? 0)}; stale after ${duration(worker.stale_after_seconds)}.`;
  return silence?.active ? `${age} Many are: rather the pipeline than the worker.` : age;
}

function engineTrouble(worker) {
  const engine = worker.engine;
  if (!engine) return null;
  const stalled = worker.engine_stalled_seconds;
  if (stalled !== null && stalled >= STALLED_SECONDS) {
    return { level: "bad", word: "stalled", reason: `It has work and did no step for ${duration(stalled)}.` };
  }
  if (engine.state === "unreachable")
    return { level: "warn", word: "no engine", reason: "The agent does not reach the engine." };
  if (engine.requests_waiting && engine.kv_cache_usage_ratio >= FULL_RATIO) {
    return {
      level: "warn",
      word: "full",
      reason: `KV cache ${percent(engine.kv_cache_usage_ratio)}, ${engine.requests_waiting} wait.`,
    };
  }
  return null;
}

function statusOf(worker) {
  if (worker.status === "degraded")
    return { level: "warn", word: "degraded", reason: "The agent says so; see its log." };
  if (worker.status === "draining") return { level: "unknown", word: "draining", reason: "It gets no new requests." };
  if (worker.status === "starting") return { level: "unknown", word: "starting", reason: "" };
  if (worker.engine?.state === "starting") return { level: "unknown", word: "starting", reason: "The engine starts." };
  return {
    level: "good",
    word: "ready",
    reason: worker.engine && worker.engine.state !== "absent" ? "" : "Host only, without an engine.",
  };
}

// How hot, by the distance to the limit that the device itself tells.
export function heat(hottest, limit) {
  if (hottest === null || hottest === undefined) return { level: "none", reason: "not measured" };
  const [warn, bad] = limit ? [limit - MARGIN_CELSIUS, limit] : [HOT_CELSIUS, TOO_HOT_CELSIUS];
  const reason = limit ? `It slows itself down at ${celsius(limit)}.` : "Its own limit is not known.";
  return { level: hottest >= bad ? "bad" : hottest >= warn ? "warn" : "good", reason };
}

export const pressure = (ratio, warn = 0.9, bad = FULL_RATIO) =>
  ratio >= bad ? "bad" : ratio >= warn ? "warn" : "load";
