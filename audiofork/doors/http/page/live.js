// The live table of forks.

import { h, setAttribute, setText } from "./dom.js";
import { VirtualRows } from "./rows.js";
import { ageOf, levelOf } from "./store.js";
import * as words from "./words.js";

const COLUMNS = [
  { name: "caller", title: "Caller", key: (fork) => words.callerOf(fork).name.toLowerCase() },
  { name: "channel", title: "Channel", key: (fork) => fork.channel },
  { name: "direction", title: "Carries", key: (fork) => fork.direction },
  { name: "host", title: "Server", key: (fork) => fork.host },
  { name: "asterisk", title: "Asterisk", key: (fork) => fork.asterisk ?? "", ofCluster: true },
  { name: "relay", title: "Relay host", key: (fork) => fork.relay_host ?? "", ofCluster: true },
  { name: "status", title: "State", key: (fork) => RANK[words.stateOf(fork).word] ?? 9 },
  { name: "age", title: "Age", key: (fork) => -fork.bornAt, figure: true },
  { name: "in", title: "In", key: (fork) => levelOf(fork)[1], figure: true },
  { name: "out", title: "Out", key: (fork) => levelOf(fork)[3], figure: true },
  { name: "latency", title: "Latency", key: (fork) => fork.rtt_ms ?? 0, figure: true },
  { name: "backlog", title: "Backlog", key: (fork) => fork.backlog ?? 0, figure: true },
  { name: "dropped", title: "Dropped", key: (fork) => fork.frames_dropped, figure: true },
];
const RANK = { failed: 0, reconnecting: 1, requested: 2, attaching: 3, ended: 4, streaming: 5 };
const ON_ITS_WAY = 2; // frames, which do not wait for the server
const LOUD = 29204; // 1 dB below full scale
const SORTED_BY_FIGURES = new Set(["in", "out", "latency", "backlog", "dropped"]);
const SHOWN = {
  all: () => true,
  well: (fork) => fork.state === "streaming" && !fork.gone,
  ill: (fork) => fork.state !== "streaming" || fork.gone,
};

export class LiveView {
  #sort = { name: "age", down: false };
  #chosen = "";
  #meterClock = 0;
  #asked = false;

  constructor(store) {
    this.store = store;
    this.element = this.#build();
    this.rows = new VirtualRows(this.scroller, this.table, () => makeRow());
    store.addEventListener("list", () => this.#ask());
    store.addEventListener("stats", () =>
      SORTED_BY_FIGURES.has(this.#sort.name) ? this.#ask() : this.rows.ask(),
    );
    store.addEventListener("levels", () => this.#levels());
    // Ages go on without news, too.
    this.clock = setInterval(() => this.isSeen && this.rows.ask(), 1000);
  }

  close() {
    clearInterval(this.clock);
  }

  /** Whether anybody sees it: it costs nothing else. */
  get isSeen() {
    return this.element.isConnected && !document.hidden && this.scroller.clientHeight > 0;
  }

  /** Mark the fork that is looked at; empty: none. */
  choose(id) {
    this.#chosen = id;
    for (const row of this.rows.rows) row.choose(id);
    this.rows.ask();
  }

  focus(id) {
    if (!this.rows.focus(id)) this.filter.focus();
  }

  update() {
    this.#ask();
  }

  #build() {
    this.filter = h("input", {
      type: "search",
      id: "filter",
      placeholder: "Caller, channel, server …",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.#ask(),
    });
    this.which = h(
      "select",
      { id: "which", onchange: () => this.#ask() },
      h("option", { value: "all" }, "All"),
      h("option", { value: "well" }, "Streaming"),
      h("option", { value: "ill" }, "Not streaming"),
    );
    this.sortBox = h(
      "select",
      {
        id: "sort",
        onchange: () =>
          this.#sortBy(this.sortBox.value, this.sortBox.value === "age" ? false : undefined),
      },
      COLUMNS.map((column) =>
        h("option", { value: column.name }, `By ${column.title.toLowerCase()}`),
      ),
    );
    this.ofCluster = [...this.sortBox.options].filter(
      (option) => COLUMNS.find((column) => column.name === option.value).ofCluster,
    );
    this.missing = h("ul", { class: "missing", role: "status", hidden: true });
    this.count = h("p", { class: "count", role: "status" });
    this.head = COLUMNS.map((column) => this.#headCell(column));
    this.table = h(
      "table",
      { class: "forks", "aria-label": "Forks", role: "table" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row", "aria-rowindex": 1 }, this.head)),
      h("tbody", { role: "rowgroup" }),
    );
    this.scroller = h("div", { class: "scroller", tabindex: "-1" }, h("div", {}, this.table));
    this.empty = h("div", { class: "empty", hidden: true });
    this.#sortBy("age", false);
    return h(
      "section",
      { class: "live", "aria-labelledby": "live-title" },
      h(
        "div",
        { class: "tools" },
        h("h2", { id: "live-title", class: "hidden" }, "Forks"),
        this.count,
        h("label", { class: "hidden", for: "filter" }, "Filter"),
        this.filter,
        h("label", { class: "hidden", for: "which" }, "Which forks"),
        this.which,
        h("label", { class: "hidden", for: "sort" }, "Sort by"),
        this.sortBox,
      ),
      this.missing,
      this.scroller,
      this.empty,
    );
  }

  #headCell(column) {
    const button = h(
      "button",
      { type: "button", onclick: () => this.#sortBy(column.name) },
      column.title,
    );
    return h(
      "th",
      {
        scope: "col",
        role: "columnheader",
        class: `${column.name}${column.figure ? " figure" : ""}`,
        "data-name": column.name,
      },
      button,
    );
  }

  #sortBy(name, down = this.#sort.name === name ? !this.#sort.down : SORTED_BY_FIGURES.has(name)) {
    this.#sort = { name, down };
    this.sortBox.value = name;
    for (const cell of this.head) {
      setAttribute(
        cell,
        "aria-sort",
        cell.dataset.name === name ? (down ? "descending" : "ascending") : null,
      );
    }
    if (this.rows) this.#ask();
  }

  /** Filter, sort and paint before the next frame, however much changes until then. */
  #ask() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#show();
    });
  }

  #show() {
    if (!this.isSeen && this.rows.items.length) return;
    const asked = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = SHOWN[this.which.value];
    const items = [];
    for (const fork of this.store.forks.values()) {
      if (
        fits(fork) &&
        asked.every((word) => fork.searched.includes(word) || fork.state.includes(word))
      )
        items.push(fork);
    }
    this.#tellCluster();
    this.rows.show(sorted(items, this.#sort));
    this.#tellCount(items.length);
  }

  /** Show where the forks are, and whose are missing; nothing of it without a cluster. */
  #tellCluster() {
    const { isCluster, missing } = this.store;
    this.table.classList.toggle("clustered", isCluster);
    for (const option of this.ofCluster) option.hidden = option.disabled = !isCluster;
    const texts = Object.entries(missing).map(
      ([name, why]) => `The forks of ${words.shown(name)} are missing: ${words.shown(why)}`,
    );
    if (texts.join("\n") === this.told) return;
    this.told = texts.join("\n");
    this.missing.hidden = texts.length === 0;
    this.missing.replaceChildren(...texts.map((text) => h("li", {}, text)));
  }

  #tellCount(fitting) {
    const all = this.store.forks.size;
    setText(
      this.count,
      fitting === all
        ? words.plural(all, "fork")
        : `${words.count(fitting)} of ${words.plural(all, "fork")}`,
    );
    this.empty.hidden = fitting > 0;
    this.scroller.hidden = fitting === 0;
    setText(this.empty, this.#emptiness(all));
  }

  #emptiness(all) {
    if (this.store.isLoaded) {
      return all
        ? "No fork fits the filter."
        : "No call is forked now. A fork appears here as soon as it is requested.";
    }
    const { trouble } = this.store;
    return trouble
      ? `The list cannot be read: ${words.shown(trouble)}. Trying again …`
      : "Loading …";
  }

  #levels() {
    if (!this.isSeen) return;
    // What is read out need not move as fast as what is seen.
    this.#meterClock = (this.#meterClock + 1) % 5;
    requestAnimationFrame(() => {
      for (const row of this.rows.rows) if (row.item) row.level(row.item, this.#meterClock === 0);
    });
  }
}

function sorted(items, { name, down }) {
  const { key } = COLUMNS.find((column) => column.name === name);
  const keyed = items.map((item) => [key(item), item]);
  const sign = down ? -1 : 1;
  keyed.sort(([a, one], [b, other]) => {
    if (a < b) return -sign;
    if (a > b) return sign;
    return other.bornAt - one.bornAt || (one.id < other.id ? -1 : 1); // the same each time
  });
  return keyed.map(([, item]) => item);
}

/** A row, whose cells are only touched where their text is another. */
function makeRow() {
  const cells = Object.fromEntries(
    COLUMNS.map((column) => [
      column.name,
      h("td", {
        role: "cell",
        class: `${column.name}${column.figure ? " figure" : ""}`,
        "data-title": column.title,
      }),
    ]),
  );
  const name = h("bdi");
  const number = h("bdi", { class: "dim" });
  const link = h("a", { tabindex: "-1" }, name);
  cells.caller.append(link, " ", number);
  const word = h("span", { class: "word" });
  const reason = h("span", { class: "dim" });
  cells.status.append(word, " ", reason);
  const meters = [new Meter("In"), new Meter("Out")];
  cells.in.append(meters[0].element);
  cells.out.append(meters[1].element);
  const element = h("tr", { role: "row" }, Object.values(cells));
  element.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !getSelection().toString()) link.click();
  });
  const row = {
    element,
    link,
    item: null,
    chosen: "",
    choose(id) {
      row.chosen = id;
      element.classList.toggle("chosen", Boolean(row.item) && row.item.id === id);
    },
    bind(fork) {
      const caller = words.callerOf(fork);
      const state = words.stateOf(fork);
      setText(name, caller.name);
      setText(number, caller.number);
      setAttribute(link, "href", `#/forks/${encodeURIComponent(fork.id)}`);
      setText(cells.channel, words.shown(fork.channel));
      setText(cells.direction, words.directionOf(fork));
      setText(cells.host, words.shown(fork.host));
      setText(cells.asterisk, words.shown(fork.asterisk ?? ""));
      setText(cells.relay, words.shown(fork.relay_host ?? ""));
      setText(word, state.word);
      setText(reason, state.reason);
      setAttribute(cells.status, "title", state.reason || null);
      setAttribute(word, "data-state", state.word);
      setText(cells.age, words.duration(ageOf(fork)));
      setText(cells.latency, words.milliseconds(fork.rtt_ms ?? 0));
      setText(cells.backlog, fork.backlog > ON_ITS_WAY ? words.frames(fork.backlog) : "–");
      setText(cells.dropped, fork.frames_dropped ? words.frames(fork.frames_dropped) : "–");
      cells.dropped.classList.toggle("bad", fork.frames_dropped > 0);
      cells.backlog.classList.toggle("warn", fork.backlog > 25);
      element.classList.toggle("gone", Boolean(fork.gone));
      row.choose(row.chosen);
      row.level(fork, true);
    },
    level(fork, tells) {
      const [inPeak, inRms, outPeak, outRms] = levelOf(fork);
      meters[0].show(inPeak, inRms, words.isMuted(fork, "in"), tells);
      meters[1].show(outPeak, outRms, words.isMuted(fork, "out"), tells);
    },
  };
  return row;
}

/** A level as a bar from silence to full scale: RMS, with a mark at the peak. */
export class Meter {
  #seen = "";
  #told = "";

  constructor(label) {
    this.element = h("span", {
      class: `meter side-${label.toLowerCase()}`,
      role: "meter",
      "aria-label": `Level ${label.toLowerCase()}`,
      "aria-valuemin": words.QUIETEST_DB,
      "aria-valuemax": 0,
      "aria-valuenow": words.QUIETEST_DB,
      "aria-valuetext": "not forked",
    });
  }

  show(peak, rms, muted, tells = true) {
    const bar = Math.round(words.share(rms) * 100);
    const mark = Math.round(words.share(peak) * 100);
    const seen = `${bar} ${mark} ${rms < 0} ${muted}`;
    if (seen !== this.#seen) {
      this.#seen = seen;
      const { style, classList } = this.element;
      style.backgroundSize = `${bar}% 100%, ${mark ? 2 : 0}px 100%, auto`;
      style.backgroundPosition = `0 0, ${mark}% 0, 0 0`;
      classList.toggle("absent", rms < 0);
      classList.toggle("muted", muted);
      classList.toggle("loud", peak > LOUD);
    }
    if (!tells) return;
    const told = words.levelWords(rms, muted);
    if (told === this.#told) return;
    this.#told = told;
    setAttribute(this.element, "aria-valuetext", told);
    setAttribute(this.element, "aria-valuenow", Math.round(words.decibel(rms)));
  }
}
