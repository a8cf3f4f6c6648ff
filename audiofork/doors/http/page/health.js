// How it goes: the last hours as plots, the relays, and what `audiofork check` finds.

import { get } from "./api.js";
import { h, setText } from "./dom.js";
import { plotsOf } from "./plots.js";
import * as words from "./words.js";

const CHECK_S = 120; // it connects to everything
const SERIES_MS = 60000;
const MARKS = { ok: "ok", warn: "warning", fail: "fault", skip: "not checked" };

export class HealthView {
  #timer = 0;

  constructor() {
    this.hours = h(
      "select",
      { id: "hours", onchange: () => this.#series() },
      [1, 6, 24].map((hours) => h("option", { value: hours }, words.plural(hours, "hour"))),
    );
    this.hours.value = "6";
    this.plots = h("div", {});
    this.relays = h("div", {});
    this.run = h("button", { type: "button", onclick: () => this.check() }, "Check again");
    this.told = h("p", { class: "count", role: "status" });
    this.findings = h("ul", { class: "findings" });
    this.element = h(
      "section",
      { class: "health", "aria-labelledby": "health-title" },
      h(
        "div",
        { class: "tools" },
        h("h2", { id: "health-title" }, "The last hours"),
        h("label", { class: "hidden", for: "hours" }, "How many hours"),
        this.hours,
      ),
      this.plots,
      h("h2", {}, "Relays"),
      this.relays,
      h("div", { class: "tools" }, h("h2", {}, "Check"), this.told, this.run),
      this.findings,
    );
  }

  open() {
    this.#series();
    this.#timer = setInterval(() => this.#series(), SERIES_MS);
    if (!this.findings.childElementCount) this.check();
  }

  close() {
    clearInterval(this.#timer);
  }

  status(status) {
    const rows = (status.relays ?? []).map((relay) =>
      h(
        "tr",
        {},
        h("td", {}, words.shown(relay.name)),
        h(
          "td",
          {},
          h(
            "span",
            { class: "word", "data-state": relay.up ? "streaming" : "failed" },
            relay.up ? "runs" : "is down",
          ),
        ),
        h("td", { class: "figure" }, words.plural(relay.forks, "fork")),
      ),
    );
    this.relays.replaceChildren(
      h(
        "table",
        { class: "list relays", "aria-label": "Relays" },
        h(
          "thead",
          { class: "hidden" },
          h(
            "tr",
            {},
            ["Relay", "State", "Forks"].map((title) => h("th", { scope: "col" }, title)),
          ),
        ),
        h("tbody", {}, rows),
      ),
    );
  }

  async #series() {
    const hours = Number(this.hours.value);
    try {
      this.plots.replaceChildren(plotsOf((await get("series", { hours })).minutes, hours));
    } catch (error) {
      this.plots.replaceChildren(
        h("p", { class: "dim" }, `The figures cannot be read: ${words.shown(error.message)}`),
      );
    }
  }

  async check() {
    this.run.disabled = true;
    setText(this.told, "Checking …");
    try {
      const report = await get("check", {}, CHECK_S);
      const order = ["fail", "warn", "skip", "ok"];
      const sorted = report.findings
        .map((finding) => ({ ...finding, mark: markOf(finding) }))
        .sort((one, other) => order.indexOf(one.mark) - order.indexOf(other.mark));
      this.findings.replaceChildren(...sorted.map((finding) => findingOf(finding)));
      const faults = sorted.filter((finding) => finding.mark === "fail").length;
      setText(
        this.told,
        `${faults ? words.plural(faults, "fault") : "No fault"}, at ${words.atClock(report.at)}`,
      );
    } catch (error) {
      setText(this.told, `It cannot be checked: ${words.shown(error.message)}`);
    }
    this.run.disabled = false;
  }
}

const markOf = (finding) =>
  String(finding.status).toLowerCase() in MARKS ? String(finding.status).toLowerCase() : "warn";

function findingOf(finding) {
  const states = { ok: "streaming", warn: "reconnecting", fail: "failed", skip: "ended" };
  return h(
    "li",
    { "data-mark": finding.mark },
    h("span", { class: "word", "data-state": states[finding.mark] }, MARKS[finding.mark]),
    h(
      "div",
      {},
      h("bdi", {}, words.shown(finding.text, 600)),
      finding.remedy ? h("p", { class: "remedy" }, String(finding.remedy).slice(0, 4000)) : null,
    ),
  );
}
