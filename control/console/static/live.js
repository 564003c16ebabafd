// The service's events, as they happen: one connection for the whole page, and the newest of them for who comes later.

export const KEPT = 300;
const KINDS = ["lifecycle", "archived", "worker", "gap"];
const listeners = new Set();

export const live = { connected: false, wasConnected: false, since: null, recent: [] };
let source = null;
let retry = 0;
let refused = false;

// listener({ kind, data, at }) for every event, and ({ kind: "connection" }) when the connection comes or goes.
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(event) {
  for (const listener of [...listeners]) listener(event);
}

function connection(connected) {
  if (live.connected === connected) return;
  live.connected = connected;
  live.wasConnected ||= connected;
  tell({ kind: "connection", data: null, at: new Date() });
}

export function connect(checkSession) {
  disconnect();
  live.since = new Date();
  source = new EventSource("/events");
  source.addEventListener("open", () => {
    connection(true);
    // A browser forgets where it was when it was refused, so that what happened meanwhile is missed.
    if (refused) happened("gap", {}, `refused ${Date.now()}`);
    refused = false;
  });
  source.addEventListener("error", () => {
    connection(false);
    // The browser comes back by itself unless it was refused; then it may be that the session is over.
    if (source.readyState === EventSource.CLOSED) {
      refused ||= live.wasConnected;
      checkSession();
      retry = setTimeout(() => connect(checkSession), 5000);
    }
  });
  for (const kind of KINDS) {
    source.addEventListener(kind, (message) => happened(kind, JSON.parse(message.data), message.lastEventId));
  }
}

function happened(kind, data, id) {
  const event = { kind, data, at: new Date(), id };
  live.recent.unshift(event);
  live.recent.length = Math.min(live.recent.length, KEPT);
  tell(event);
}

export function disconnect() {
  clearTimeout(retry);
  source?.close();
  source = null;
  connection(false);
}
