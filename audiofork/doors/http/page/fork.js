// One fork's own view.

import { forkPath, patch, remove } from "./api.js";
import { confirmed, h, notify, setAttribute, setText } from "./dom.js";
import { Listening } from "./listen.js";
import { Meter } from "./live.js";
import { Timeline, Transcript, momentOf } from "./moments.js";
import { ageOf, levelOf } from "./store.js";
import { Wave } from "./wave.js";
import * as words from "./words.js";

// What is said of a fork, besides its state; null leaves it out.
const FACTS = {
  Server: (fork) => words.shown(fork.url),
  Channel: (fork) => words.shown(fork.channel),
  Uniqueid: (fork) => words.shown(fork.uniqueid),
  Carries: (fork) =>
    [
      words.directionOf(fork),
      fork.sample_rate ? `${fork.sample_rate / 1000} kHz` : "",
      fork.tap ? `by ${fork.tap}` : "",
    ]
      .filter(Boolean)
      .join(", "),
  Asterisk: (fork) => words.shown(fork.asterisk ?? "") || null,
  "Relay host": (fork) => words.shown(fork.relay_host ?? "") || null,
  Format: (fork) =>
    [
      words.shown(fork.profile),
      fork.format && fork.format !== fork.profile ? words.shown(fork.format) : "",
    ]
      .filter(Boolean)
      .join(", ") || null,
  Age: (fork) => words.duration(ageOf(fork)),
  Latency: (fork) => words.milliseconds(fork.rtt_ms ?? 0),
  Sent: (fork) => words.frames(fork.frames_sent ?? 0),
  Backlog: (fork) => words.frames(fork.backlog ?? 0),
  Dropped: (fork) => words.frames(fork.frames_dropped ?? 0),
  Gaps: (fork) => (fork.gaps ? words.count(fork.gaps) : null),
  "Not from Asterisk": (fork) => (fork.frames_missing ? words.frames(fork.frames_missing) : null),
  "Heard in the call": (fork) =>
    fork.speaks
      ? `${words.frames(fork.frames_played ?? 0)}, ${words.plural(fork.underruns ?? 0, "underrun")}`
      : null,
  "Texts beyond the limit": (fork) =>
    fork.messages_ignored ? words.count(fork.messages_ignored) : null,
  "Commands refused": (fork) => (fork.commands_refused ? words.count(fork.commands_refused) : null),
  "Last error": (fork) => words.shown(fork.last_error) || null,
};

export class ForkView {
  #listening = null;
  #heard = []; // events while the timeline is asked for
  #isFilled = false;

  constructor(id, store, session) {
    this.id = id;
    this.store = store;
    this.may = (role) => session.roles.includes(role);
    this.element = this.#build();
    this.listeners = {
      list: () => this.#update(),
      stats: () => this.#update(),
      levels: () => this.#levels(),
      fork: (event) => this.#event(event.detail.name, event.detail.data),
    };
    for (const [name, listener] of Object.entries(this.listeners))
      store.addEventListener(name, listener);
    this.clock = setInterval(() => this.#update(), 1000);
    this.#update();
    this.#fill();
  }

  close() {
    for (const [name, listener] of Object.entries(this.listeners))
      this.store.removeEventListener(name, listener);
    clearInterval(this.clock);
    this.#listening?.stop();
    this.wave.close();
    this.element.remove();
  }

  focus() {
    this.title.focus({ preventScroll: true });
  }

  /** The fork, or what it was last. */
  get #fork() {
    const known = this.store.forks.get(this.id);
    if (known) this.last = known;
    return this.last ?? null;
  }

  #build() {
    this.wave = new Wave();
    this.timeline = new Timeline();
    this.transcript = new Transcript();
    this.title = h("h2", { id: "fork-title", tabindex: "-1" }, "Fork");
    this.status = h(
      "p",
      { class: "status" },
      h("span", { class: "word" }),
      " ",
      h("span", { class: "dim" }),
    );
    this.facts = h("dl", { class: "facts" });
    this.rows = new Map();
    this.meters = [new Meter("In"), new Meter("Out")];
    this.hearing = h("p", { class: "hearing dim", role: "status" });
    this.note = h("p", { class: "note", hidden: true });
    this.silent = h("p", { class: "dim" }, "The server has sent no text.");
    return h(
      "section",
      { class: "panel", "aria-labelledby": "fork-title" },
      h(
        "header",
        {},
        this.title,
        h("a", { class: "close", href: "#/forks", "aria-label": "Close" }, "✕"),
      ),
      this.status,
      this.note,
      this.#buttons(),
      this.hearing,
      this.wave.element,
      h(
        "div",
        { class: "meters" },
        h("span", { "aria-hidden": "true" }, "in"),
        this.meters[0].element,
        h("span", { "aria-hidden": "true" }, "out"),
        this.meters[1].element,
      ),
      this.facts,
      h("h3", {}, "Texts of the server"),
      this.silent,
      this.transcript.element,
      h("h3", {}, "Timeline"),
      this.timeline.element,
    );
  }

  #buttons() {
    const button = (text, press, props) =>
      h("button", { type: "button", onclick: press, ...props }, text);
    this.listen = button("Listen", () => this.#listen(), { "aria-pressed": "false" });
    this.mutes = ["in", "out"].map((side) =>
      button(`Mute ${side}`, () => this.#mute(side), { "aria-pressed": "false" }),
    );
    this.stopping = button("Stop", () => this.#stop(), { class: "danger" });
    return h(
      "div",
      { class: "actions" },
      this.may("listen") ? this.listen : null,
      this.may("control") ? [...this.mutes, this.stopping] : null,
    );
  }

  async #fill() {
    const found = await this.store.look(this.id);
    if (found) this.last = this.store.forks.get(this.id);
    const timeline = found?.timeline ?? [];
    const latest = timeline.at(-1)?.at ?? 0;
    this.timeline.fill(timeline);
    this.transcript.fill(timeline);
    this.#isFilled = true;
    // An event and its moment are noted one after the other.
    for (const moment of this.#heard.splice(0)) if (moment.at > latest + 0.01) this.#add(moment);
    this.isLost = !found && !this.last;
    this.#update();
  }

  #update() {
    const fork = this.#fork;
    const isOver =
      !fork ||
      Boolean(fork.gone) ||
      (this.store.isLoaded && this.#isFilled && !this.store.forks.has(this.id));
    this.#tellOver(fork, isOver);
    if (!fork) return;
    const caller = words.callerOf(fork);
    setText(this.title, [caller.name, caller.number].filter(Boolean).join(" "));
    const state = this.store.forks.has(this.id)
      ? words.stateOf(fork)
      : { word: "ended", reason: fork.gone?.why ?? "" };
    setText(this.status.children[0], state.word);
    setAttribute(this.status.children[0], "data-state", state.word);
    setText(this.status.children[1], state.reason);
    this.#showMeters(fork);
    this.wave.gap(state.word === "reconnecting");
    this.mutes.forEach((button, place) => {
      const isOn = words.isMuted(fork, ["in", "out"][place]);
      setAttribute(button, "aria-pressed", isOn);
    });
    for (const [name, say] of Object.entries(FACTS)) this.#fact(name, say(fork));
  }

  #tellOver(fork, isOver) {
    for (const button of [this.listen, ...this.mutes, this.stopping]) button.disabled = isOver;
    if (this.#listening) this.listen.disabled = false;
    this.silent.hidden = !this.transcript.isEmpty;
    this.transcript.element.hidden = this.transcript.isEmpty;
    this.note.hidden = !isOver || !this.#isFilled;
    if (this.note.hidden || this.note.childElementCount) return;
    this.note.append(
      fork ? "This fork has ended. " : "There is no such fork now. ",
      h("a", { href: `#/history/${encodeURIComponent(this.id)}` }, "Look in the history"),
    );
  }

  #fact(name, text) {
    let row = this.rows.get(name);
    if (!row && text !== null) {
      row = h("div", {}, h("dt", {}, name), h("dd", {}));
      this.rows.set(name, row);
      this.facts.append(row);
    }
    if (!row) return;
    row.hidden = text === null;
    setText(row.lastElementChild, text || "–");
  }

  #levels() {
    const fork = this.#fork;
    if (!fork?.level || fork.gone) return;
    this.#showMeters(fork);
    this.wave.levels(levelOf(fork));
  }

  #showMeters(fork) {
    const [inPeak, inRms, outPeak, outRms] = levelOf(fork);
    this.meters[0].show(inPeak, inRms, words.isMuted(fork, "in"));
    this.meters[1].show(outPeak, outRms, words.isMuted(fork, "out"));
  }

  #event(name, data) {
    if (data.fork?.id !== this.id) return;
    const moment = momentOf(name, data);
    if (!moment) return;
    if (this.#isFilled) this.#add(moment);
    else this.#heard.push(moment);
    this.#update();
  }

  #add(moment) {
    this.timeline.add(moment);
    if (moment.kind === "message") this.transcript.add(moment);
  }

  #listen() {
    if (this.#listening) {
      this.#listening.stop();
      return;
    }
    this.#listening = new Listening(this.id, {
      onState: (text, isOver) => this.#tellListening(text, isOver),
      onSamples: (sides, rate) => this.wave.samples(sides, rate),
    });
    this.wave.hear(true);
  }

  #tellListening(text, isOver) {
    setText(
      this.hearing,
      text
        ? isOver
          ? `Listening ${text}`.replace("Listening audiofork", "audiofork")
          : `Listening: ${text}`
        : "",
    );
    setText(this.listen, isOver ? "Listen" : "Stop listening");
    setAttribute(this.listen, "aria-pressed", !isOver);
    if (!isOver) return;
    this.#listening = null;
    this.wave.hear(false);
    this.#update();
  }

  async #mute(side) {
    const isOn = !words.isMuted(this.#fork, side);
    await this.#asked(async () => {
      Object.assign(this.#fork, {
        muted: (await patch(forkPath(this.id), { mute: { [side]: isOn } })).muted,
      });
      this.#update();
    }, "It cannot be muted");
  }

  async #stop() {
    const caller = words.callerOf(this.#fork).name;
    if (
      !(await confirmed(
        `Stop the fork of ${caller}? The call goes on; its server gets no more audio.`,
        "Stop it",
      ))
    )
      return;
    await this.#asked(() => remove(forkPath(this.id)), "It cannot be stopped");
  }

  async #asked(ask, otherwise) {
    try {
      await ask();
    } catch (error) {
      notify(`${otherwise}: ${error.message}`, "bad");
    }
  }
}
