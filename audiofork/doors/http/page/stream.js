// The stream of events: Server-Sent Events by fetch, because EventSource tells no status and no reason.

import { ApiError, answered, url } from "./api.js";

const SILENCE_S = 45; // a comment comes every 15
const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 10;
const HIDDEN_S = 30; // then nobody looks, and nothing is asked

/**
 * Connects, and connects again, until `stop`.
 *
 * onEvent(name, data): an event. onState(text): empty when connected, else why not.
 */
export class Stream {
  #lastId = "";
  #attempts = 0;
  #abort = null;
  #stopped = false;
  #wake = null;
  #hiding = 0;
  #onVisibility = () => this.#visibility();

  constructor({ onEvent, onState }) {
    this.onEvent = onEvent;
    this.onState = onState;
    document.addEventListener("visibilitychange", this.#onVisibility);
    this.#run();
  }

  stop() {
    this.#stopped = true;
    document.removeEventListener("visibilitychange", this.#onVisibility);
    clearTimeout(this.#hiding);
    this.#abort?.abort();
    this.#wake?.();
  }

  #visibility() {
    clearTimeout(this.#hiding);
    if (document.hidden) this.#hiding = setTimeout(() => this.#abort?.abort(), HIDDEN_S * 1000);
    else this.#wake?.();
  }

  async #run() {
    while (!this.#stopped) {
      let why = "the connection to audiofork was closed";
      let waitS = 0;
      try {
        await this.#read();
      } catch (error) {
        if (this.#stopped || error.status === 401) return;
        why = error instanceof ApiError ? error.message : "the connection to audiofork is lost";
        waitS = error.retryAfterS ?? 0;
      }
      if (this.#stopped) return;
      waitS =
        Math.max(waitS, Math.min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** this.#attempts)) *
        (0.75 + Math.random() / 2);
      this.#attempts += 1;
      if (!document.hidden) this.onState(why);
      await new Promise((resolve) => {
        this.#wake = resolve;
        if (!document.hidden) setTimeout(resolve, waitS * 1000);
      });
    }
  }

  async #read() {
    this.#abort = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
    let watchdog = this.#watch();
    try {
      const response = await answered(url("events", { levels: 1 }), {
        headers,
        signal: this.#abort.signal,
      });
      this.onState("");
      // What we know is from now on, if there was nothing to resume from.
      if (!this.#lastId) this.onEvent("reset", {});
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const lines = new Lines((name, data, id) => this.#event(name, data, id));
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = this.#watch();
        lines.feed(value);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  #watch() {
    return setTimeout(() => this.#abort.abort(), SILENCE_S * 1000);
  }

  #event(name, data, id) {
    this.#attempts = 0;
    if (id) this.#lastId = id;
    this.onEvent(name, data);
  }
}

/** Decodes the lines of a stream of events. Pieces may split it anywhere. */
export class Lines {
  #rest = "";
  #name = "";
  #id = "";
  #data = [];

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  feed(piece) {
    const lines = (this.#rest + piece).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line.endsWith("\r") ? line.slice(0, -1) : line);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return undefined; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") this.#name = value;
    else if (field === "id") this.#id = value;
    else if (field === "data") this.#data.push(value);
    return undefined;
  }

  #dispatch() {
    const [name, id, text] = [this.#name, this.#id, this.#data.join("\n")];
    this.#name = this.#id = "";
    this.#data = [];
    if (!name) return;
    try {
      this.onEvent(name, text ? JSON.parse(text) : {}, id);
    } catch (error) {
      console.error("an event cannot be used", name, error);
    }
  }
}
