// Ended forks: what failed today, a search, and one entry's own view.

import { get } from "./api.js";
import { h, setText } from "./dom.js";
import { Timeline, Transcript } from "./moments.js";
import * as words from "./words.js";

const PAGE = 50;
const DAY_S = 86400;
const NOT_KEPT = "a text"; // in the place of each text of a server, unless [history] texts is on
const REASONS = [
  "hangup",
  "stopped",
  "sink-refused",
  "sink-gone",
  "sink-closed",
  "leg-failed",
  "no-such-channel",
  "shutdown",
  "fault",
];

const midnight = () => new Date().setHours(0, 0, 0, 0) / 1000;
const PERIODS = {
  today: ["Today", () => midnight()],
  day: ["Last 24 hours", () => Date.now() / 1000 - DAY_S],
  week: ["Last 7 days", () => Date.now() / 1000 - 7 * DAY_S],
  all: ["All", () => ""],
};

export class HistoryView {
  #query = {};
  #cursor = "";
  #asked = 0; // which search is the latest
  #missing = {}; // in a cluster, which controllers did not answer each question, and why

  constructor() {
    this.element = this.#build();
  }

  /** Search anew; called when the view is opened, too. */
  async search() {
    this.#query = this.#asks();
    this.#cursor = "";
    await Promise.all([this.#more(true), this.#causes()]);
  }

  /** Let one Asterisk be chosen, where the cluster has several; nothing of it without a cluster. */
  takeStatus({ controllers = [] }) {
    const names = [...new Set(controllers.map((one) => one.asterisk))].sort();
    const { asterisk } = this.form;
    const known = [...asterisk.options].map((option) => option.value).filter(Boolean);
    if (names.join("\n") === known.join("\n")) return;
    const chosen = asterisk.value;
    asterisk.replaceChildren(
      ...[["", "Any"], ...names.map((name) => [name, words.shown(name)])].map(([value, text]) =>
        h("option", { value }, text),
      ),
    );
    asterisk.value = names.includes(chosen) ? chosen : "";
    asterisk.closest("label").hidden = names.length < 2;
  }

  focus(id) {
    const links = [...this.body.querySelectorAll("a")];
    (links.find((link) => link.dataset.id === id) ?? this.form.querySelector("input")).focus();
  }

  #build() {
    const field = (name, label) =>
      h(
        "label",
        {},
        h("span", {}, label),
        h("input", { type: "search", name, autocomplete: "off", spellcheck: "false" }),
      );
    const choice = (name, label, options) =>
      h(
        "label",
        {},
        h("span", {}, label),
        h(
          "select",
          { name },
          options.map(([value, text]) => h("option", { value }, text)),
        ),
      );
    this.form = h(
      "form",
      { class: "search", role: "search", onsubmit: (event) => this.#submitted(event) },
      field("caller", "Caller"),
      field("channel", "Channel"),
      field("host", "Server"),
      field("text", "Text"),
      choice("reason", "Reason", [["", "Any"], ...REASONS.map((reason) => [reason, reason])]),
      choice("failed", "Outcome", [
        ["", "Any"],
        ["true", "Failed"],
        ["false", "Not failed"],
      ]),
      choice(
        "period",
        "Ended",
        Object.entries(PERIODS).map(([name, [text]]) => [name, text]),
      ),
      choice("asterisk", "Asterisk", [["", "Any"]]),
      h("button", { type: "submit" }, "Search"),
    );
    this.form.period.value = "week";
    this.form.asterisk.closest("label").hidden = true;
    this.missing = h("ul", { class: "missing", role: "status", hidden: true });
    this.body = h("tbody", {});
    this.status = h("p", { class: "count", role: "status" });
    this.older = h(
      "button",
      { type: "button", hidden: true, onclick: () => this.#more(false) },
      "Older",
    );
    this.causes = h("div", {});
    const head = ["Ended", "Caller", "Channel", "Server", "Reason", "Lasted", "Sent", "Dropped"];
    this.table = h(
      "table",
      { class: "list", "aria-labelledby": "history-title" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((title, place) =>
            h("th", { scope: "col", class: place > 4 ? "figure" : null }, title),
          ),
          ["Asterisk", "Controller"].map((title) =>
            h("th", { scope: "col", class: "of-cluster" }, title),
          ),
        ),
      ),
      this.body,
    );
    return h(
      "section",
      { class: "history", "aria-labelledby": "history-title" },
      this.missing,
      h(
        "section",
        { "aria-labelledby": "causes-title" },
        h("h2", { id: "causes-title" }, "What failed today"),
        this.causes,
      ),
      h("div", { class: "tools" }, h("h2", { id: "history-title" }, "Ended forks"), this.status),
      this.form,
      this.table,
      this.older,
    );
  }

  #submitted(event) {
    event.preventDefault();
    this.search();
  }

  #asks() {
    const asked = Object.fromEntries(new FormData(this.form));
    const { period, ...query } = asked;
    return { ...query, since: PERIODS[period][1](), limit: PAGE };
  }

  async #more(isNew) {
    const number = (this.#asked += 1);
    setText(this.status, "Searching …");
    try {
      const page = await get("history", { ...this.#query, cursor: this.#cursor });
      if (number !== this.#asked) return;
      if (isNew) this.body.replaceChildren();
      this.#tellMissing("search", page);
      if (page.entries.some((entry) => entry.asterisk)) this.table.classList.add("clustered");
      const rows = page.entries.map((entry) => rowOf(entry));
      this.body.append(...rows);
      if (!isNew) rows[0]?.querySelector("a").focus();
      this.#cursor = page.next_cursor;
      this.older.hidden = !page.next_cursor;
      const shownRows = this.body.childElementCount;
      setText(
        this.status,
        shownRows
          ? `${words.plural(shownRows, "fork")}${page.next_cursor ? ", and older ones" : ""}`
          : "No ended fork fits.",
      );
    } catch (error) {
      if (number === this.#asked) setText(this.status, troubleOf(error));
    }
  }

  async #causes() {
    try {
      const answer = await get("history/causes", { since: midnight() });
      const { causes } = answer;
      this.#tellMissing("causes", answer);
      this.causes.replaceChildren(
        causes.length ? causesTable(causes) : h("p", { class: "dim" }, "Nothing has failed today."),
      );
    } catch (error) {
      this.causes.replaceChildren(h("p", { class: "dim" }, troubleOf(error)));
    }
  }

  #tellMissing(question, { missing = {} }) {
    this.#missing[question] = missing;
    const all = Object.entries({ ...this.#missing.causes, ...this.#missing.search });
    this.missing.hidden = all.length === 0;
    this.missing.replaceChildren(
      ...all.map(([name, why]) =>
        h("li", {}, `The history of ${words.shown(name)} is missing: ${words.shown(why)}`),
      ),
    );
  }
}

const troubleOf = (error) => `The history cannot be read: ${words.shown(error.message)}`;
const linkTo = (id, ...children) =>
  h("a", { href: `#/history/${encodeURIComponent(id)}`, "data-id": id }, ...children);

function causesTable(causes) {
  const most = Math.max(...causes.map((cause) => cause.count));
  const rows = causes.map((cause) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${Math.max(2, (cause.count / most) * 100)}%`;
    return h(
      "tr",
      {},
      h("td", { class: "figure" }, words.count(cause.count)),
      h("td", { class: "share" }, bar),
      h(
        "td",
        {},
        h("b", {}, words.shown(cause.reason)),
        " ",
        h("bdi", { class: "dim" }, words.shown(cause.detail)),
      ),
      h(
        "td",
        { class: "figure" },
        linkTo(cause.fork_id, `latest ${words.atClock(cause.latest_at)}`),
      ),
    );
  });
  return h(
    "table",
    { class: "list causes", "aria-labelledby": "causes-title" },
    h(
      "thead",
      { class: "hidden" },
      h(
        "tr",
        {},
        ["Forks", "Share", "Cause", "Latest"].map((title) => h("th", { scope: "col" }, title)),
      ),
    ),
    h("tbody", {}, rows),
  );
}

function rowOf(entry) {
  const caller = words.callerOf(entry);
  const cell = (title, ...children) => h("td", { "data-title": title }, ...children);
  const figure = (title, text) => h("td", { class: "figure", "data-title": title }, text);
  return h(
    "tr",
    { class: entry.failed ? "failed" : null },
    cell("Ended", words.atDate(entry.ended_at)),
    cell(
      "Caller",
      linkTo(entry.fork_id, h("bdi", {}, caller.name)),
      " ",
      h("bdi", { class: "dim" }, caller.number),
    ),
    cell("Channel", words.shown(entry.channel)),
    cell("Server", words.shown(entry.host)),
    h(
      "td",
      { "data-title": "Reason", title: words.shown(entry.detail) || null },
      h(
        "span",
        { class: "word", "data-state": entry.failed ? "failed" : "ended" },
        words.shown(entry.reason),
      ),
      " ",
      h("bdi", { class: "dim" }, words.shown(entry.detail)),
    ),
    figure("Lasted", entry.started_at ? words.duration(entry.ended_at - entry.started_at) : "–"),
    figure("Sent", entry.totals?.frames_sent ? words.frames(entry.totals.frames_sent) : "–"),
    figure(
      "Dropped",
      entry.totals?.frames_dropped ? words.frames(entry.totals.frames_dropped) : "–",
    ),
    ["asterisk", "controller"].map((name) =>
      h("td", { class: "of-cluster" }, words.shown(entry[name] ?? "")),
    ),
  );
}

export class EntryView {
  constructor(id) {
    this.title = h("h2", { id: "entry-title", tabindex: "-1" }, "Ended fork");
    this.content = h("div", {}, h("p", { class: "dim" }, "Loading …"));
    this.element = h(
      "section",
      { class: "panel", "aria-labelledby": "entry-title" },
      h(
        "header",
        {},
        this.title,
        h("a", { class: "close", href: "#/history", "aria-label": "Close" }, "✕"),
      ),
      this.content,
    );
    this.#load(id);
  }

  close() {
    this.element.remove();
  }

  focus() {
    this.title.focus({ preventScroll: true });
  }

  async #load(id) {
    try {
      this.#show(await get(`history/${encodeURIComponent(id)}`));
    } catch (error) {
      this.content.replaceChildren(
        h(
          "p",
          { class: "note" },
          error.status === 404 ? "The history has no such fork." : troubleOf(error),
        ),
      );
    }
  }

  #show(entry) {
    const caller = words.callerOf(entry);
    setText(this.title, [caller.name, caller.number].filter(Boolean).join(" "));
    const timeline = new Timeline();
    const transcript = new Transcript();
    this.content.replaceChildren(
      h(
        "p",
        { class: "status" },
        h(
          "span",
          { class: "word", "data-state": entry.failed ? "failed" : "ended" },
          entry.failed ? "failed" : "ended",
        ),
        " ",
        h(
          "bdi",
          { class: "dim" },
          [entry.reason, words.shown(entry.detail)].filter(Boolean).join(": "),
        ),
      ),
      factsOf(entry),
      h("h3", {}, "Texts of the server"),
      transcript.element,
      h("h3", {}, "Timeline"),
      timeline.element,
    );
    const moments = entry.timeline ?? [];
    timeline.fill(moments);
    transcript.fill(moments.filter((moment) => moment.text !== NOT_KEPT));
    if (!transcript.isEmpty) return;
    const texts = moments.filter((moment) => moment.kind === "message").length;
    transcript.element.replaceWith(
      h(
        "p",
        { class: "dim" },
        texts
          ? `The server has sent ${words.plural(texts, "text")}, of which none was kept: see [history] texts.`
          : "The server has sent no text.",
      ),
    );
  }
}

function factsOf(entry) {
  const facts = {
    Server: words.shown(entry.url),
    Channel: words.shown(entry.channel),
    Uniqueid: words.shown(entry.uniqueid),
    Carries: [
      words.directionOf(entry),
      entry.sample_rate ? `${entry.sample_rate / 1000} kHz` : "",
      entry.tap ? `by ${entry.tap}` : "",
    ]
      .filter(Boolean)
      .join(", "),
    Format: [words.shown(entry.profile), words.shown(entry.format)].filter(Boolean).join(", "),
    Requested: words.atDate(entry.requested_at),
    Started: entry.started_at ? words.atDate(entry.started_at) : "never",
    Ended: words.atDate(entry.ended_at),
    Asterisk: words.shown(entry.asterisk ?? ""),
    Controller: words.shown(entry.controller ?? ""),
  };
  for (const [name, value] of Object.entries(entry.totals ?? {})) {
    const title = name.replaceAll("_", " ");
    if (value) facts[title[0].toUpperCase() + title.slice(1)] = words.count(value);
  }
  return h(
    "dl",
    { class: "facts" },
    Object.entries(facts)
      .filter(([, text]) => text)
      .map(([name, text]) => h("div", {}, h("dt", {}, words.shown(name, 40)), h("dd", {}, text))),
  );
}
