// The service's events, as they happen: one connection for the whole page, and the newest of them for who comes later.
// While nobody sees the page it holds none: browsers have six for a service, and six forgotten tabs would take them all.

export const KEPT = 300;
const RETRY_MILLISECONDS = 5000;
const KINDS = ["lifecycle", "archived", "worker", "gap"];
const listeners = new Set();

export const live = { connected: false, wasConnected: false, recent: [] };
let source = null;
let retry = 0;
// Where to go on; null before the first connection.
let lastId = null;
// What to do when the connection is refused; null while none is wanted.
let onRefused = null;

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
  onRefused = checkSession;
  open();
}

function open() {
  close();
  if (!onRefused || document.hidden) return;
  source = new EventSource(lastId === null ? "/events" : `/events?last_event_id=${encodeURIComponent(lastId)}`);
  source.addEventListener("open", () => connection(true));
  source.addEventListener("error", () => {
    connection(false);
    // The browser comes back by itself unless it was refused; then it may be that the session is over.
    if (source?.readyState !== EventSource.CLOSED) return;
    retry = setTimeout(open, RETRY_MILLISECONDS);
    onRefused?.();
  });
  source.addEventListener("begin", ({ lastEventId }) => (lastId = lastEventId));
  for (const kind of KINDS) source.addEventListener(kind, (message) => happened(kind, message));
}

function happened(kind, { data, lastEventId }) {
  lastId = lastEventId;
  const event = { kind, data: JSON.parse(data), at: new Date(), id: lastEventId };
  live.recent.unshift(event);
  live.recent.length = Math.min(live.recent.length, KEPT);
  tell(event);
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

// What the next one who logs in may see is another matter.
export function disconnect() {
  close();
  onRefused = lastId = null;
  live.recent = [];
  connection(false);
}

document.addEventListener("visibilitychange", () => (document.hidden ? close() : source || open()));
