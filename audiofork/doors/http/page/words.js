// Says things of forks in words and figures; all texts that others wrote pass `shown`.

// Control characters, and those that turn the direction of the text around them.
const HARMFUL = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
const FULL_SCALE = 32767;
export const QUIETEST_DB = -60;

const numbers = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const calendar = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

/** Return a foreign text fit for one line. */
export function shown(text, most = 300) {
  const line = String(text ?? "").replace(HARMFUL, "\ufffd");
  return line.length > most ? `${line.slice(0, most)}…` : line;
}

export const count = (number) => numbers.format(number ?? 0);
export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;
export const atClock = (at) => clock.format(at * 1000);

/** Return the time, with the date unless it is today's. */
export function atDate(at) {
  const isToday = new Date(at * 1000).toDateString() === new Date().toDateString();
  return (isToday ? clock : calendar).format(at * 1000);
}

/** Return a duration as 42 s, 3:07 or 1:02:33. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export const milliseconds = (ms) =>
  ms > 0 ? `${ms < 10 ? ms.toFixed(1) : count(Math.round(ms))} ms` : "–";

/** Return frames of 20 ms as a duration: what waits for the server, for example. */
export const frames = (number) =>
  number < 50
    ? `${number * 20} ms`
    : number < 3000
      ? `${(number / 50).toFixed(1)} s`
      : duration(number / 50);

/** Return a level in dB below full scale, at least QUIETEST_DB. */
export function decibel(level) {
  return level > 0 ? Math.max(QUIETEST_DB, 20 * Math.log10(level / FULL_SCALE)) : QUIETEST_DB;
}

/** Return how much of a meter a level fills, 0 to 1. */
export const share = (level) => 1 - decibel(level) / QUIETEST_DB;

export function levelWords(rms, muted) {
  if (rms < 0) return "not forked";
  const level = decibel(rms);
  const words = level <= QUIETEST_DB ? "silence" : `${Math.round(level)} dB`;
  return muted ? `muted, ${words}` : words;
}

export function callerOf(fork) {
  const name = shown(fork.caller_name, 80);
  const number = shown(fork.caller_number, 40);
  return { name: name || number || "unknown", number: name ? number : "" };
}

export const directionOf = (fork) =>
  ({ both: "mixed", stereo: "in + out" })[fork.direction] ?? fork.direction ?? "";

/** Return the state's word and, where there is one, its reason. */
export function stateOf(fork) {
  if (fork.gone)
    return { word: fork.gone.failed ? "failed" : "ended", reason: shown(fork.gone.why) };
  const next = fork.next_attempt_s;
  const reasons = [
    fork.ending ? `ending: ${shown(fork.ending)}` : "",
    fork.state !== "streaming" ? shown(fork.last_error) : "",
    fork.waits_for ? `waits for ${shown(fork.waits_for)}` : "",
    fork.attempt && next !== null && next !== undefined ? `attempt ${fork.attempt}` : "",
  ];
  return { word: fork.state || "requested", reason: reasons.filter(Boolean).join(", ") };
}

export const isMuted = (fork, side) =>
  fork.muted === "both" || fork.muted === (side === "in" ? "read" : "write");

/** Return what a text of a server says: the words of a transcript where it has some, else all of it. */
export function spoken(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return { words: shown(text, 2000), partial: false, isTranscript: false };
  }
  const at = (...path) => path.reduce((value, key) => value?.[key], message);
  const found = [
    [at("channel", "alternatives", 0, "transcript"), message?.is_final === false],
    [at("transcript"), message?.end_of_turn === false || message?.is_final === false],
    [at("metadata", "transcript"), /Partial/.test(message?.message)],
    [at("partial"), true],
    [at("DisplayText"), false],
    [at("text"), message?.is_final === false],
    [at("Text"), true],
  ].find(([words]) => typeof words === "string" && words.trim());
  if (!found) return { words: shown(text, 2000), partial: false, isTranscript: false };
  return { words: shown(found[0].trim(), 2000), partial: found[1], isTranscript: true };
}
