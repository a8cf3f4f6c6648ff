// Plays a fork's audio: what comes by the WebSocket is scheduled, piece after piece.

import { forkPath, url } from "./api.js";

const LEAD_S = 0.15; // against pieces that come late
const MOST_S = 0.8; // further ahead than this is left out, to stay with the call

/**
 * Plays from now on, until `stop` or the fork's end.
 *
 * onState(text, isOver): what goes on, in words. onSamples(sides, sampleRate): what is heard.
 */
export class Listening {
  #context = null;
  #format = null;
  #next = 0;
  #isOver = false;

  constructor(id, { onState, onSamples }) {
    this.onState = onState;
    this.onSamples = onSamples;
    // Within the click, or the browser would not play.
    this.#context = new AudioContext({ latencyHint: "interactive" });
    this.#context.resume();
    const where = url(`${forkPath(id)}/listen`);
    where.protocol = where.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(where);
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("message", (event) => this.#message(event.data));
    this.socket.addEventListener("close", (event) => this.#closed(event));
    onState("connecting …", false);
  }

  stop() {
    this.#end("");
  }

  #message(data) {
    if (this.#isOver) return;
    if (data instanceof ArrayBuffer) {
      if (this.#format) this.#play(data);
      return;
    }
    const told = JSON.parse(data);
    if (told.sample_rate) {
      this.#format = told;
      this.onState(
        `${told.sides.join(" and ")}, ${told.sample_rate / 1000} kHz${told.sides.length === 2 ? "; in is left, out is right" : ""}`,
        false,
      );
    } else if ("ended" in told) {
      this.#end(`ended: ${told.ended}`);
    }
  }

  #closed(event) {
    // A refusal of the handshake has no reason here: the browser does not tell.
    this.#end(
      this.#format
        ? `ended${event.reason ? `: ${event.reason}` : ""}`
        : "audiofork does not let you listen to it now",
    );
  }

  #play(data) {
    const { channels, sample_rate: rate, sides } = this.#format;
    const slin = new DataView(data);
    const length = Math.floor(data.byteLength / 2 / channels);
    if (!length) return;
    const buffer = this.#context.createBuffer(channels, length, rate);
    const heard = { in: null, out: null };
    for (let channel = 0; channel < channels; channel += 1) {
      const samples = buffer.getChannelData(channel);
      for (let index = 0; index < length; index += 1) {
        samples[index] = slin.getInt16((index * channels + channel) * 2, true) / 32768;
      }
      heard[sides[channel] === "out" ? "out" : "in"] = samples;
    }
    this.onSamples(heard, rate);
    this.#schedule(buffer);
  }

  #schedule(buffer) {
    const now = this.#context.currentTime;
    if (this.#next < now) this.#next = now + LEAD_S;
    if (this.#next > now + MOST_S) return;
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#context.destination);
    source.start(this.#next);
    this.#next += buffer.duration;
  }

  #end(text) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.socket.close();
    this.#context.close();
    this.onState(text, true);
  }
}
