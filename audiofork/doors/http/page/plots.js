// Small plots of the last hours, as SVG.

import { h, svg } from "./dom.js";
import * as words from "./words.js";

const BARS = 72;
const WIDTH = 360;
const HEIGHT = 64;

const PLOTS = [
  { title: "Starts", one: "start", parts: [["started", "well"]] },
  {
    title: "Failed or refused",
    one: "fork",
    parts: [
      ["failed", "bad"],
      ["refused", "warn"],
    ],
  },
  { title: "Reconnects", one: "reconnect", parts: [["reconnects", "warn"]] },
  { title: "Dropped", one: "frame", parts: [["frames_dropped", "bad"]] },
];

/** Return the plots of minutes, oldest first, up to now. */
export function plotsOf(minutes, hours) {
  const step = Math.max(1, Math.round((hours * 60) / BARS));
  const now = Math.floor(Date.now() / 60000) * 60;
  const buckets = Array.from({ length: Math.ceil((hours * 60) / step) }, () => ({}));
  for (const minute of minutes) {
    const place = buckets.length - 1 - Math.floor((now - minute.at) / 60 / step);
    const bucket = buckets[place];
    if (!bucket) continue;
    for (const name of ["started", "failed", "refused", "reconnects", "frames_dropped"])
      bucket[name] = (bucket[name] ?? 0) + (minute[name] ?? 0);
  }
  const times = buckets.map((_, place) => now - (buckets.length - 1 - place) * step * 60);
  return h(
    "div",
    { class: "plots" },
    PLOTS.map((plot) => plotOf(plot, buckets, times, hours, step)),
  );
}

function plotOf({ title, one, parts }, buckets, times, hours, step) {
  const sums = buckets.map((bucket) => parts.reduce((sum, [name]) => sum + (bucket[name] ?? 0), 0));
  const all = sums.reduce((sum, value) => sum + value, 0);
  const most = Math.max(...sums, 1);
  const at = times[sums.indexOf(most)];
  const summary = all
    ? `${words.plural(all, one)} in ${words.plural(hours, "hour")}, at most ${words.count(most)} in ${words.plural(step, "minute")}, at ${hoursAndMinutes(at)}`
    : `none in ${words.plural(hours, "hour")}`;
  const wide = WIDTH / buckets.length;
  const bars = buckets.flatMap((bucket, place) => {
    let top = HEIGHT;
    return parts.map(([name, kind]) => {
      const tall = ((bucket[name] ?? 0) / most) * (HEIGHT - 4);
      top -= tall;
      return tall
        ? svg("rect", {
            class: kind,
            x: (place * wide).toFixed(2),
            y: top.toFixed(2),
            width: Math.max(1, wide - 1).toFixed(2),
            height: tall.toFixed(2),
          })
        : null;
    });
  });
  return h(
    "figure",
    { class: "plot" },
    h(
      "figcaption",
      {},
      h("b", {}, title),
      " ",
      h("span", { class: "figure" }, title === "Dropped" ? words.frames(all) : words.count(all)),
    ),
    svg(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${title}: ${summary}`,
      },
      svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      bars,
    ),
    h(
      "p",
      { class: "axis", "aria-hidden": "true" },
      h("span", {}, hoursAndMinutes(times[0])),
      h("span", {}, all ? `most ${words.count(most)} in ${step} min` : "none"),
      h("span", {}, "now"),
    ),
  );
}

const hoursAndMinutes = (at) => words.atClock(at).slice(0, 5);
