// What is known of the running forks: a list that is loaded once, and kept by events.

import { forkPath, get } from "./api.js";
import { shown } from "./words.js";

const PAGE = 500;
const LINGER_MS = 4000; // an ended fork stays for so long, to be read
const FEW = 4; // so many are asked for one by one, more by a new list
const REFRESH_MS = 150;
const RELOAD_MS = 1000;
const STALE_MS = 1500;
const MISSING_MS = 5000; // how often it is looked whether what is missing is there again
const UNKNOWN = [-1, -1, -1, -1];

/**
 * Forks, by id. Listeners hear "list" (which there are, or what is said of one), "stats" (figures moved), "levels",
 * and "fork" (an event of a fork: name, data).
 */
export class Store extends EventTarget {
  forks = new Map();
  isLoaded = false;
  trouble = ""; // why the list cannot be loaded
  missing = {}; // in a cluster, why the forks of an Asterisk are not there, by its name
  isCluster = false;
  #isClosed = false;
  #dirty = new Set();
  #timer = 0;
  #loading = null;
  #waiting = [];
  #loadedAt = 0;

  /** Take an event of the stream. */
  take(name, data) {
    if (name === "levels") this.#levels(data.levels);
    else if (name === "stats") this.#stats(data.forks);
    else if (name === "reset") this.load();
    else if (this.#loading) this.#waiting.push([name, data]);
    else this.#event(name, data);
  }

  close() {
    this.#isClosed = true;
  }

  /** Load the list anew. */
  async load() {
    this.#loading ??= this.#loadAll();
    await this.#loading;
  }

  async #loadAll() {
    const found = [];
    let missing = {};
    try {
      let cursor = "";
      do {
        const page = await get("forks", { limit: PAGE, cursor });
        found.push(...page.forks);
        missing = page.missing ?? {};
        cursor = page.next_cursor;
      } while (cursor);
    } catch (error) {
      this.#loading = null;
      if (this.#isClosed || error.status === 401) return;
      this.trouble = error.message;
      this.#tell("list");
      this.#later(RELOAD_MS, () => this.load());
      return;
    }
    const known = this.forks;
    this.forks = new Map(found.map((fork) => [fork.id, adopted(fork, known.get(fork.id))]));
    this.isLoaded = true;
    this.trouble = "";
    this.missing = missing;
    const isMissing = Object.keys(missing).length > 0;
    this.isCluster ||= isMissing || found.some((fork) => fork.asterisk);
    if (isMissing) this.#later(MISSING_MS, () => this.#isClosed || this.load());
    this.#loadedAt = performance.now();
    this.#loading = null;
    for (const [name, data] of this.#waiting.splice(0)) this.#event(name, data);
    this.#tell("list");
  }

  #levels(levels) {
    for (const id in levels) {
      const fork = this.forks.get(id);
      if (!fork) continue;
      fork.level = levels[id];
      fork.levelAt = performance.now();
    }
    this.#tell("levels");
  }

  #stats(stats) {
    for (const id in stats) {
      const fork = this.forks.get(id);
      if (!fork || fork.gone) continue;
      const before = fork.state;
      Object.assign(fork, stats[id]);
      if (fork.state !== before) this.#refresh(id);
    }
    this.#tell("stats");
  }

  #event(name, data) {
    const id = data.fork?.id;
    if (id) this.#fork(name, data, id);
    this.#tell("fork", { name, data });
  }

  #fork(name, data, id) {
    let fork = this.forks.get(id);
    if (name === "fork.requested" && !fork) {
      const { fork: info, at, ...more } = data;
      fork = adopted({ ...BLANK, ...more, ...info, requested_at: at });
      this.isCluster ||= Boolean(fork.asterisk);
      this.forks.set(id, fork);
      this.#refresh(id);
      this.#tell("list");
      return;
    }
    if (!fork) return;
    const change = CHANGES[name];
    if (change) Object.assign(fork, change(data));
    if (fork.gone) this.#later(LINGER_MS, () => this.#forget(fork));
    else if (change) this.#refresh(id);
    if (change) this.#tell("list");
  }

  #forget(fork) {
    if (this.forks.get(fork.id) === fork && this.forks.delete(fork.id)) this.#tell("list");
  }

  /** Ask for what events do not tell, soon. */
  #refresh(id) {
    this.#dirty.add(id);
    if (!this.#timer) this.#timer = this.#later(REFRESH_MS, () => this.#ask());
  }

  async #ask() {
    const sinceLoad = performance.now() - this.#loadedAt;
    if (this.#dirty.size > FEW && sinceLoad < RELOAD_MS) {
      this.#timer = this.#later(RELOAD_MS - sinceLoad, () => this.#ask());
      return;
    }
    const ids = [...this.#dirty];
    this.#dirty.clear();
    this.#timer = 0;
    if (ids.length > FEW) await this.load();
    else await Promise.all(ids.map((id) => this.look(id)));
  }

  /** Ask for one fork; return it with its timeline, or null if it is not there any more. */
  async look(id) {
    let found;
    try {
      found = await get(forkPath(id));
    } catch {
      return null; // it has ended, or the stream tells what is wrong
    }
    const known = this.forks.get(id);
    if (!known?.gone) this.forks.set(id, adopted(found, known));
    this.#tell("list");
    return found;
  }

  #later(ms, what) {
    return setTimeout(what, ms);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

const BLANK = {
  caller_name: "",
  caller_number: "",
  direction: "",
  state: "requested",
  age_s: 0,
  frames_in: 0,
  frames_sent: 0,
  frames_dropped: 0,
  backlog: 0,
  rtt_ms: 0,
  muted: "",
};

// What an event says of its fork; the rest is asked for.
const CHANGES = {
  "fork.started": () => ({ state: "streaming", waits_for: "" }),
  "fork.resumed": (data) =>
    data.is_streaming === false ? {} : { state: "streaming", waits_for: "", attempt: 0 },
  "fork.reconnecting": (data) => ({
    ...(data.was_streaming === false ? {} : { state: "reconnecting" }),
    last_error: data.detail,
    attempt: data.attempt,
  }),
  "fork.muted": (data) => ({
    muted: data.in && data.out ? "both" : data.in ? "read" : data.out ? "write" : "",
  }),
  "fork.stopped": (data) => ({ gone: { failed: false, why: ended(data) } }),
  "fork.failed": (data) => ({ gone: { failed: true, why: ended(data) } }),
  "fork.ended": (data) => ({ gone: { failed: Boolean(data.failed), why: ended(data) } }),
};

export const ended = (data) => [data.reason, shown(data.detail)].filter(Boolean).join(": ");

/** Make a fork of the interface one of ours, with what is known of it already. */
function adopted(fork, known) {
  const one = known ?? { level: null, gone: null };
  Object.assign(one, fork, { bornAt: performance.now() - fork.age_s * 1000 });
  delete one.timeline;
  one.searched = [
    one.caller_name,
    one.caller_number,
    one.channel,
    one.direction,
    one.host,
    one.profile,
    one.url,
    one.asterisk,
    one.relay_host,
  ]
    .join("\n")
    .toLowerCase();
  return one;
}

/** Return [in_peak, in_rms, out_peak, out_rms] as they are now; silence if nothing is told of them any more. */
export function levelOf(fork) {
  if (fork.gone || !fork.level) return UNKNOWN;
  return performance.now() - fork.levelAt < STALE_MS
    ? fork.level
    : fork.level.map((level) => Math.min(level, 0));
}

export const ageOf = (fork) => (performance.now() - fork.bornAt) / 1000;
