// What happened to a fork: its timeline, and what its server said.

import { h, setText } from "./dom.js";
import { ended } from "./store.js";
import * as words from "./words.js";

const MOST = 400;

// Words for the kinds of moments that are events; others are said as they are called.
const TEXTS = {
  "fork.requested": () => "",
  "fork.started": () => "audio flows to the server",
  "fork.reconnecting": (data) =>
    [partOf(data), data.attempt ? `attempt ${data.attempt}` : "", data.detail]
      .filter(Boolean)
      .join(", "),
  "fork.resumed": (data) =>
    [
      partOf(data),
      data.gap_ms ? `a gap of ${data.gap_ms} ms` : "",
      data.frames_dropped ? `${words.frames(data.frames_dropped)} dropped` : "",
    ]
      .filter(Boolean)
      .join(", "),
  "fork.message": (data) => data.text,
  "fork.dtmf": (data) =>
    `${data.digit ? `key ${data.digit}` : "a key"}${data.duration_ms ? `, ${data.duration_ms} ms` : ""}`,
  "fork.command": (data) =>
    [data.command, data.value, data.outcome, data.detail].filter(Boolean).join(" "),
  "fork.muted": (data) =>
    [data.in ? "in" : "", data.out ? "out" : ""].filter(Boolean).join(" and ") || "nothing",
  "fork.refused": (data) => [data.request, data.detail].filter(Boolean).join(": "),
  "fork.ended": ended,
};
const partOf = ({ what }) =>
  ({ in: "the leg of in", out: "the leg of out" })[what] ?? (what ? `the ${what}` : "");
const SILENT = new Set(["fork.stopped", "fork.failed"]); // fork.ended has told it

/** Return an event as a moment of the timeline; null if it is none. */
export function momentOf(name, data) {
  if (!name.startsWith("fork.") || SILENT.has(name)) return null;
  const text = TEXTS[name]?.(data) ?? data.text ?? "";
  return { at: data.at, kind: name.slice("fork.".length), text: String(text ?? "") };
}

/** A list that grows at its end, and stays there if that is in sight. */
class Scroll {
  constructor(label, kind) {
    this.list = h("ol", { class: kind });
    this.box = h(
      "div",
      { class: "log", role: "region", "aria-label": label, tabindex: "0" },
      this.list,
    );
  }

  add(item) {
    const isAtEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
    this.list.append(item);
    while (this.list.childElementCount > MOST) this.list.firstElementChild.remove();
    if (isAtEnd) this.toEnd();
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
  }

  clear() {
    this.list.replaceChildren();
  }
}

export class Timeline {
  #scroll = new Scroll("Timeline", "timeline");

  get element() {
    return this.#scroll.box;
  }

  fill(moments) {
    this.#scroll.clear();
    for (const moment of moments) this.add(moment);
    this.#scroll.toEnd();
  }

  add(moment) {
    this.#scroll.add(
      h(
        "li",
        { "data-kind": moment.kind },
        h("time", { datetime: new Date(moment.at * 1000).toISOString() }, words.atClock(moment.at)),
        h("b", {}, words.shown(moment.kind, 40)),
        h("bdi", {}, words.shown(moment.text, 600)),
      ),
    );
  }
}

/** The server's texts, as a transcript: what is not final is replaced by what comes next. */
export class Transcript {
  #scroll = new Scroll("Texts of the server", "transcript");
  #partial = null;

  get element() {
    return this.#scroll.box;
  }

  get isEmpty() {
    return !this.#scroll.list.childElementCount;
  }

  fill(moments) {
    this.#scroll.clear();
    this.#partial = null;
    for (const moment of moments) if (moment.kind === "message") this.add(moment);
    this.#scroll.toEnd();
  }

  add(moment) {
    const { words: text, partial, isTranscript } = words.spoken(moment.text);
    if (this.#partial && isTranscript) {
      setText(this.#partial.querySelector("bdi"), text);
      this.#partial.classList.toggle("partial", partial);
      if (!partial) this.#partial = null;
      return;
    }
    const item = h(
      "li",
      {
        class: `${partial ? "partial" : ""} ${isTranscript ? "" : "raw"}`,
        title: words.shown(moment.text, 1000),
      },
      h("time", { datetime: new Date(moment.at * 1000).toISOString() }, words.atClock(moment.at)),
      h("bdi", {}, text),
    );
    this.#scroll.add(item);
    if (partial) this.#partial = item;
  }
}
