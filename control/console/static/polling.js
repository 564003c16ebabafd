// Asking again and again while somebody looks.

const MOST_SECONDS = 60;

// work(signal) is called at once, then so many seconds after it ended; after a failure later and later. It rests while
// the page is hidden. failed(error) hears of failures. Returns { now, stop }.
export function every(seconds, work, failed) {
  const ending = new AbortController();
  let timer = 0;
  let running = false;
  let again = false;
  let failures = 0;

  async function run() {
    if (ending.signal.aborted || running) {
      again = true;
      return;
    }
    clearTimeout(timer);
    running = true;
    again = false;
    try {
      await work(ending.signal);
      failures = 0;
    } catch (error) {
      if (ending.signal.aborted) return;
      failures += 1;
      failed(error);
    } finally {
      running = false;
    }
    if (ending.signal.aborted) return;
    const pause = again ? 0.2 : Math.min(seconds * 2 ** Math.min(failures, 5), Math.max(seconds, MOST_SECONDS));
    timer = setTimeout(() => (document.hidden ? undefined : run()), pause * 1000);
  }

  const seen = () => (document.hidden ? undefined : run());
  document.addEventListener("visibilitychange", seen);
  run();
  return {
    now: run,
    stop() {
      ending.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
