// What the panel says in words and numbers.
import { series, smoothLoss } from "./curve.mjs";

const NONE = "\u2013";
const GIB = 2 ** 30;

/**
 * The row of figures, in the order they stand.
 * @param {import("./curve.mjs").Curve} curve
 * @returns {[string, string][]} label and value
 */
export function figures(curve) {
  const last = (read) => series(curve.records, read).at(-1)?.value;
  const seconds = secondsPerStep(curve);
  const left = curve.running && seconds ? duration((curve.total - curve.step) * seconds) : NONE;
  const memory = last((r) => r.memory);
  return [
    ["step", curve.step ? `${curve.step} / ${curve.total || "?"}` : NONE],
    ["loss", fixed(smoothLoss(curve).at(-1)?.value)],
    ["validation", fixed(last((r) => r.validation))],
    ["rate", brief(last((r) => r.learning_rate))],
    ["gradient", brief(last((r) => r.grad_norm))],
    ["memory", memory ? `${(memory / GIB).toFixed(1)} GiB` : NONE],
    ["s / step", brief(seconds)],
    ["time left", left],
  ];
}

/**
 * What goes on, in one line.
 * @param {import("./curve.mjs").Curve} curve
 */
export function headline(curve) {
  if (curve.trouble) return curve.trouble;
  if (curve.phase === "encode") return `encoding ${curve.encoded[0]} of ${curve.encoded[1]}`;
  if (curve.running) return "training";
  if (!curve.records.length) return "not trained yet";
  if (curve.step >= curve.total) return `finished at step ${curve.step}`;
  return `stopped at step ${curve.step} of ${curve.total}, queue it to go on`;
}

/** The latest note. @param {import("./curve.mjs").Curve} curve */
export function latestNote(curve) {
  return curve.notes.length ? noteLine(curve.notes.at(-1)) : "";
}

/** @param {import("./curve.mjs").Note} note */
export function noteLine({ step, note }) {
  return `step ${step}: ${note}`;
}

/** Median of the latest steps, because a step with a sample picture or a validation is no measure. */
function secondsPerStep(curve) {
  const latest = series(curve.records, (r) => r.seconds).slice(-20).map((p) => p.value).sort((a, b) => a - b);
  return latest.length ? latest[Math.floor(latest.length / 2)] : undefined;
}

function fixed(value) {
  return Number.isFinite(value) ? value.toFixed(4) : NONE;
}

/** A number in three digits: 0.00200 is 0.002, 0.00015 is 1.5e-4. */
export function brief(value) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0 || (size >= 0.001 && size < 10000)) return String(Number(value.toPrecision(3)));
  const [digits, power] = value.toExponential(2).split("e");
  return `${Number(digits)}e${Number(power)}`;
}

/** Seconds in words: 42 s, 3 min, 2 h 5 min. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
