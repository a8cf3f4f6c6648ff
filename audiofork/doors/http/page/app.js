// The page: who looks, which view is open, and the state at the top.

import { get, post, remove } from "./api.js";
import { h, notify, setAttribute, setText } from "./dom.js";
import { ForkView } from "./fork.js";
import { HealthView } from "./health.js";
import { EntryView, HistoryView } from "./history.js";
import { LiveView } from "./live.js";
import { ended, Store } from "./store.js";
import { Stream } from "./stream.js";
import * as words from "./words.js";

const STATUS_MS = 5000;
const NOTICE_EVERY_MS = 500;
const $ = (id) => document.getElementById(id);
const [main, nav, stateList, who, trouble] = ["main", "nav", "state", "who", "trouble"].map($);

/** What a signed-in user sees. */
class App {
  #view = null; // forks, history or health
  #panel = null; // of one fork, or one entry
  #opened = ""; // its id
  #timer = 0;
  #lost = "";
  #isClosed = false;
  #untold = []; // what went wrong since the last notice
  #noticing = 0;
  #noticedAt = -Infinity;

  constructor(session) {
    this.session = session;
    this.store = new Store();
    this.live = new LiveView(this.store);
    this.history = new HistoryView();
    this.health = new HealthView();
    this.place = h("div", { class: "place" });
    main.replaceChildren(this.place);
    this.store.addEventListener("fork", (event) =>
      this.#important(event.detail.name, event.detail.data),
    );
    this.stream = new Stream({
      onEvent: (name, data) => this.store.take(name, data),
      onState: (text) => this.#connection(text),
    });
    this.#status();
    this.route();
  }

  close() {
    this.#isClosed = true;
    this.stream.stop();
    this.store.close();
    this.live.close();
    clearTimeout(this.#timer);
    clearTimeout(this.#noticing);
    this.#panel?.close();
    this.health.close();
  }

  /** Show what the address names: #/forks, #/forks/ID, #/history, #/history/ID or #/health. */
  route() {
    const [, view, id] = location.hash.split("/").map((part) => decoded(part));
    const wanted = ["history", "health"].includes(view) ? view : "forks";
    const isOther = wanted !== this.#view;
    if (isOther) {
      this.#open(this.#view, "", false);
      this.#show(wanted);
    }
    this.#open(wanted, wanted === "health" ? "" : (id ?? ""), !isOther);
  }

  back() {
    if (this.#opened) location.hash = `#/${this.#view}`;
  }

  #show(view) {
    if (this.#view === "health") this.health.close();
    this.#view = view;
    for (const link of nav.children)
      setAttribute(link, "aria-current", link.dataset.view === view ? "page" : null);
    this.place.replaceChildren(
      { forks: this.live, history: this.history, health: this.health }[view].element,
    );
    document.title = { forks: "Live", history: "History", health: "Health" }[view] + " – audiofork";
    if (view === "forks") this.live.update();
    if (view === "history") this.history.search();
    if (view === "health") this.health.open();
  }

  /** Open one in the panel, or none. */
  #open(view, id, returns) {
    const before = this.#opened;
    if (id === before && (this.#panel !== null) === Boolean(id)) return;
    this.#panel?.close();
    this.#panel = null;
    this.#opened = id;
    this.place.classList.toggle("split", Boolean(id));
    if (view === "forks") this.live.choose(id);
    if (id) {
      this.#panel =
        view === "forks" ? new ForkView(id, this.store, this.session) : new EntryView(id);
      this.place.append(this.#panel.element);
      this.#panel.focus();
    } else if (returns) {
      ({ forks: this.live, history: this.history })[view]?.focus(before);
    }
  }

  #connection(text) {
    if (text && !this.#lost) this.store.isLoaded = this.store.forks.size > 0;
    if (!text && this.#lost) notify("Connected to audiofork again.");
    this.#lost = text;
    document.body.classList.toggle("lost", Boolean(text));
    tellTrouble(text ? `What is shown may be old: ${text}. Trying again …` : "");
  }

  async #status() {
    try {
      this.#tellStatus(await get("status"));
    } catch {
      // The stream tells it if nothing answers, or nobody is signed in.
    }
    if (!this.#isClosed) this.#timer = setTimeout(() => this.#status(), STATUS_MS);
  }

  #tellStatus(status) {
    const items = statesOf(status);
    items.forEach(([text, kind], place) => {
      const item = stateList.children[place] ?? stateList.appendChild(h("li", {}));
      const turned = item.className && item.className !== kind;
      if (turned && place < 3) notify(`${text}.`, kind === "ill" ? "bad" : "");
      item.className = kind;
      setText(item, text);
    });
    stateList.hidden = false;
    this.health.status(status);
    this.history.takeStatus(status);
  }

  /** Tell of what went wrong, and not more often than can be read. */
  #important(name, data) {
    const channel = words.shown(data.fork?.channel, 60);
    const text = {
      "fork.failed": () => `The fork of ${channel} has failed: ${ended(data)}.`,
      "fork.refused": () =>
        `Refused to ${words.shown(data.request, 20) || "start"} a fork: ${words.shown(data.detail)}.`,
      attack: () =>
        `An attack was fended off: ${words.shown(data.kind)}, ${words.shown(data.detail)}.`,
    }[name]?.();
    if (!text) return;
    this.#untold.push(text);
    const waitMs = this.#noticedAt + NOTICE_EVERY_MS - performance.now();
    this.#noticing ||= setTimeout(() => this.#notice(), Math.max(0, waitMs));
  }

  #notice() {
    const more = this.#untold.length - 1;
    notify(more ? `${this.#untold.at(-1)} And ${words.count(more)} more.` : this.#untold[0], "bad");
    this.#untold = [];
    this.#noticing = 0;
    this.#noticedAt = performance.now();
  }
}

/** Return what is said of the parts of the whole, and how that is: well, ill or plain. */
function statesOf({ asterisk, ari, relays = [], version, uptime_s: uptimeS }) {
  const up = relays.filter((relay) => relay.up).length;
  const all =
    up === relays.length ? words.count(up) : `${words.count(up)} of ${words.count(relays.length)}`;
  const relaysRun = `${all} ${relays.length === 1 ? "relay" : "relays"} ${up === 1 ? "runs" : "run"}`;
  return [
    [
      stateOf(`Asterisk ${words.shown(asterisk.version, 30)}`, asterisk, "Asterisk"),
      asterisk.up ? "well" : "ill",
    ],
    ari.configured
      ? [stateOf("ARI", ari), ari.up ? "well" : "ill"]
      : ["ARI not configured", "plain"],
    [relaysRun, up > 0 && up === relays.length ? "well" : "ill"],
    [`audiofork ${words.shown(version, 20)}, up ${words.duration(uptimeS)}`, "plain"],
  ];
}

const stateOf = (connected, part, away = connected) =>
  part.up ? `${connected} connected${roundTrip(part)}` : `${away} is away${because(part)}`;
const roundTrip = ({ rtt_ms: ms }) => (ms ? `, ${words.milliseconds(ms)}` : "");
const because = ({ text }) => (text ? `: ${words.shown(text)}` : "");

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

function tellTrouble(text) {
  setText(trouble, text);
  trouble.hidden = !text;
}

let app = null;

function signedIn(session) {
  setText(who.firstElementChild, `${words.shown(session.name, 40)}`);
  setAttribute(who.firstElementChild, "title", `May ${session.roles.join(", ")}`);
  for (const part of [nav, who]) part.hidden = false;
  tellTrouble("");
  app = new App(session);
}

function signedOut(why) {
  app?.close();
  app = null;
  for (const part of [nav, who, stateList]) part.hidden = true;
  stateList.replaceChildren();
  tellTrouble("");
  const token = h("input", {
    type: "password",
    id: "token",
    autocomplete: "current-password",
    required: true,
    spellcheck: "false",
  });
  const told = h("p", { class: "note", role: "alert", hidden: !why }, why);
  const button = h("button", { type: "submit" }, "Sign in");
  const form = h(
    "form",
    { class: "sign-in", "aria-labelledby": "sign-in-title" },
    h("h2", { id: "sign-in-title" }, "Sign in"),
    h("label", { for: "token" }, "Token"),
    token,
    button,
    told,
    h("p", { class: "dim" }, "One of the tokens in the daemon's tokens_file."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      signedIn(await post("session", { token: token.value.trim() }));
      main.focus({ preventScroll: true });
    } catch (error) {
      told.hidden = false;
      setText(
        told,
        error.status === 401 || error.status === 403
          ? "This token is not known."
          : words.shown(error.message),
      );
      token.select();
      button.disabled = false;
    }
  });
  document.title = "Sign in – audiofork";
  main.replaceChildren(form);
  token.focus();
}

async function begin() {
  try {
    signedIn(await get("session"));
  } catch (error) {
    if (error.status === 401) signedOut("");
    else {
      tellTrouble(`${words.shown(error.message)}. Trying again …`);
      setTimeout(begin, 2000);
    }
  }
}

window.addEventListener("hashchange", () => app?.route());
window.addEventListener(
  "signed-out",
  () => app && signedOut("Your session has ended. Sign in again."),
);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]"))
    return;
  if (event.target.type === "search" && event.target.value) return; // that is cleared first
  app?.back();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});
who.querySelector("button").addEventListener("click", async () => {
  try {
    await remove("session");
    signedOut("You have signed out.");
  } catch (error) {
    notify(`You are still signed in: ${words.shown(error.message)}`, "bad");
  }
});
begin();
