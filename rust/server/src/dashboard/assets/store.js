// The live picture: tables of rows, as the sidecar pushes them.
//
// Messages wait in a queue and are read for a few milliseconds a frame, so that even the first picture
// of ten thousand accounts leaves every frame its time. Views are told once a frame what has changed.

import { Failed, watch } from "./api.js";

const SLICE_MS = 5;
const RETRY_MS = [500, 1000, 2000, 5000];
const HIDDEN_MS = 10_000;
const SILENT_MS = 12_000; // the sidecar gives a sign of life every 5 s

const TABLES = ["account", "reservation", "watchdog", "device", "process", "job", "incident"];

/** Rows by key; a row that has changed is another object. */
export const tables = Object.fromEntries(TABLES.map((name) => [name, new Map()]));

/** How the connection stands: "connecting", "live" or "lost", and when the last message came. */
export const live = { state: "connecting", ready: false, aheadMs: 0, heardMs: 0 };

const listeners = new Set();
const queue = [];
let changed = new Map(); // table → keys that came, went or changed
let seen = null; // while a whole picture comes in: table → keys that are in it
let scheduled = false;
let abort = null;
let silence = 0; // a timer, until the next message
let tries = 0;
let onEnded = () => {};

/** The sidecar's time: its clock counts, not this one's. */
export const nowMs = () => Date.now() + live.aheadMs;

/** Calls `listener(changed, live)` once for each frame in which something has changed. */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function note(table, key) {
  let keys = changed.get(table);
  if (!keys) changed.set(table, (keys = new Set()));
  keys.add(key);
}

function drop(table, key) {
  if (tables[table].delete(key)) note(table, key);
}

function apply({ now_ms: serverMs, start, ready, ended, set = [], gone = [] }) {
  if (serverMs) live.aheadMs = serverMs - Date.now();
  if (start) seen = new Map(TABLES.map((name) => [name, new Set()]));
  for (const [table, key, row] of set) {
    if (!tables[table]) continue; // of a newer sidecar
    tables[table].set(key, row);
    seen?.get(table).add(key);
    note(table, key);
  }
  for (const [table, key] of gone) if (tables[table]) drop(table, key);
  if (ready && seen) {
    for (const [table, keys] of seen) {
      for (const key of [...tables[table].keys()]) if (!keys.has(key)) drop(table, key);
    }
    seen = null;
    live.ready = true;
    note("ready", "");
  }
  if (ended) onEnded(ended);
}

function work() {
  scheduled = false;
  const start = performance.now();
  let at = 0;
  while (at < queue.length && performance.now() - start < SLICE_MS) apply(JSON.parse(queue[at++]));
  queue.splice(0, at);
  if (changed.size) {
    const now = changed;
    changed = new Map();
    for (const listener of listeners) listener(now, live);
  }
  if (queue.length) schedule();
}

function schedule() {
  if (scheduled) return;
  scheduled = true;
  if (document.hidden) setTimeout(work, 100);
  else requestAnimationFrame(work);
}

function stand(state) {
  if (live.state === state) return;
  live.state = state;
  note("state", "");
  schedule();
}

/** Breaks a connection off on which nothing comes: who hangs, or is cut off, ends none. */
function listenFor(connection) {
  clearTimeout(silence);
  silence = setTimeout(() => connection.abort(), SILENT_MS);
}

function take(message) {
  queue.push(message);
  tries = 0;
  live.heardMs = Date.now();
  stand("live");
  schedule();
}

async function follow() {
  for (;;) {
    const mine = (abort = new AbortController());
    listenFor(mine);
    const heard = (message) => {
      listenFor(mine);
      take(message);
    };
    try {
      await watch(heard, mine.signal);
    } catch (error) {
      if (error instanceof Failed && error.status === 401) {
        onEnded(error.message);
        return;
      }
    }
    if (abort !== mine) return;
    stand("lost");
    const wait = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)];
    tries += 1;
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (abort !== mine) return;
  }
}

/** Begins to watch; `ended` is called when whoever watches has to show who they are (again). */
export function begin(ended) {
  onEnded = ended;
  stop();
  follow();
}

export function stop() {
  clearTimeout(silence);
  abort?.abort();
  abort = null;
}

/** Forgets everything: somebody else may watch next. */
export function forget() {
  stop();
  queue.length = 0;
  seen = null;
  live.ready = false;
  for (const table of Object.values(tables)) table.clear();
}

/** Looks again and again while there is somebody to see it, for a twentieth of the time at most. */
export class Again {
  constructor(everyMs, look) {
    Object.assign(this, { everyMs, look });
    this.wait(0);
  }

  wait(tookMs) {
    this.timer = setTimeout(() => this.turn(), Math.max(this.everyMs, 20 * tookMs));
  }

  async turn() {
    const start = performance.now();
    if (!document.hidden && live.state === "live") await this.look().catch(() => {});
    if (this.timer) this.wait(performance.now() - start);
  }

  leave() {
    clearTimeout(this.timer);
    this.timer = 0;
  }
}

// A page that nobody looks at for a while takes no connection.
let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => {
      if (!abort) return;
      stop();
      hiding = -1;
    }, HIDDEN_MS);
  } else if (hiding === -1) {
    hiding = 0;
    follow();
  }
});
