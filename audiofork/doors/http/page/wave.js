// A rolling picture of both sides: in above the middle, out below it.

import { h } from "./dom.js";
import { share } from "./words.js";

const SPAN_MS = 30000;
const BAR_PX = 2;
const SLICE_MS = 50; // of audio that is listened to; levels come every 200

export class Wave {
  #slices = []; // {at, ms, in, inRms, out, outRms}: levels 0 to 32767, -1: not there
  #gaps = []; // {from, to}: when no audio flowed
  #asked = false;
  #hears = false; // audio is listened to, which draws finer than levels

  constructor() {
    this.canvas = h("canvas", {
      class: "wave",
      role: "img",
      "aria-label": "The last 30 seconds of both sides, by level",
    });
    this.element = h(
      "figure",
      { class: "wave-box" },
      this.canvas,
      h(
        "figcaption",
        { "aria-hidden": "true" },
        h("span", { class: "side-in" }, "in, what the party says"),
        h("span", { class: "side-out" }, "out, what it hears"),
        h("span", { class: "dim" }, "30 s"),
      ),
    );
    this.#observer = new ResizeObserver(() => this.draw());
    this.#observer.observe(this.canvas);
    this.#scheme = matchMedia("(prefers-color-scheme: dark)");
    this.#scheme.addEventListener("change", this.#onScheme);
  }

  #observer;
  #scheme;
  #onScheme = () => this.draw();

  close() {
    this.#observer.disconnect();
    this.#scheme.removeEventListener("change", this.#onScheme);
  }

  levels([inPeak, inRms, outPeak, outRms]) {
    if (!this.#hears) this.#add({ ms: 200, in: inPeak, inRms, out: outPeak, outRms });
  }

  /** Draw by the audio itself from now on, or by levels again. */
  hear(isOn) {
    this.#hears = isOn;
  }

  /** Take audio that is heard now: one array of samples (-1 to 1) for each side; null: not there. */
  samples(sides, sampleRate) {
    const size = Math.round((sampleRate * SLICE_MS) / 1000);
    const length = (sides.in ?? sides.out).length;
    const began = performance.now();
    for (let start = 0; start < length; start += size) {
      const [inPeak, inRms] = measured(sides.in, start, size);
      const [outPeak, outRms] = measured(sides.out, start, size);
      const at = began + (start / sampleRate) * 1000;
      this.#add({ at, ms: SLICE_MS, in: inPeak, inRms, out: outPeak, outRms });
    }
  }

  gap(isOn) {
    const last = this.#gaps.at(-1);
    if (isOn && (!last || last.to)) this.#gaps.push({ from: performance.now(), to: 0 });
    if (!isOn && last && !last.to) last.to = performance.now();
  }

  #add(slice) {
    slice.at ??= performance.now();
    this.#slices.push(slice);
    const oldest = performance.now() - SPAN_MS - 1000;
    if (this.#slices[0].at < oldest) this.#slices = this.#slices.filter((one) => one.at >= oldest);
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.draw();
    });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.canvas);
    const now = performance.now();
    const x = (at) => width - ((now - at) / SPAN_MS) * width;
    context.fillStyle = style.getPropertyValue("--gap");
    for (const { from, to } of this.#gaps)
      context.fillRect(x(from), 0, x(to || now) - x(from), height);
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(0, height / 2 - 0.5, width, 1);
    for (const [side, sign] of [
      ["in", -1],
      ["out", 1],
    ])
      this.#side(context, style, side, sign, x, height / 2);
  }

  #side(context, style, side, sign, x, middle) {
    const color = style.getPropertyValue(`--${side}`);
    for (const [value, alpha] of [
      [side, 0.35],
      [`${side}Rms`, 1],
    ]) {
      context.globalAlpha = alpha;
      context.fillStyle = color;
      for (const slice of this.#slices) {
        if (slice[value] <= 0) continue;
        const tall = share(slice[value]) * (middle - 3);
        const width = Math.max(BAR_PX, x(slice.at) - x(slice.at - slice.ms) - 1);
        context.fillRect(x(slice.at), sign < 0 ? middle - 1 - tall : middle + 1, width, tall);
      }
    }
    context.globalAlpha = 1;
  }
}

function measured(samples, start, size) {
  if (!samples) return [-1, -1];
  let peak = 0;
  let sum = 0;
  const end = Math.min(samples.length, start + size);
  for (let index = start; index < end; index += 1) {
    peak = Math.max(peak, Math.abs(samples[index]));
    sum += samples[index] * samples[index];
  }
  return [peak * 32767, Math.sqrt(sum / (end - start)) * 32767];
}
