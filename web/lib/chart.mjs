// A curve as lines in a square of SIDE x SIDE, which the view stretches over the space it has.
import { series, smoothLoss } from "./curve.mjs";
import { brief } from "./figures.mjs";

export const SIDE = 1000;

/** The tabs: each a name and a function from the curve to its lines. */
export const TABS = {
  loss: lossLines,
  rate: (curve) => [one(curve, "rate", (r) => r.learning_rate)],
  gradient: (curve) => [one(curve, "gradient norm", (r) => r.grad_norm)],
  "noise levels": levelLines,
  seconds: (curve) => [one(curve, "seconds per step", (r) => r.seconds)],
};

/**
 * @typedef {{kind: string, label: string, share?: number, points: import("./curve.mjs").Point[]}} Line
 * @typedef {{kind: string, label: string, share?: number, path: string}} Drawn
 */

/** @returns {Line} */
function one(curve, label, read) {
  return { kind: "mean", label, points: series(curve.records, read) };
}

/** @returns {Line[]} */
function lossLines(curve) {
  return [
    { kind: "raw", label: "loss", points: series(curve.records, (r) => r.loss) },
    { kind: "mean", label: "smoothed", points: smoothLoss(curve) },
    { kind: "validation", label: "validation", points: series(curve.records, (r) => r.validation) },
  ];
}

/** One line a noise level, from the least noise (share 0) to the most (share 1). @returns {Line[]} */
function levelLines(curve) {
  const measured = curve.records.filter((r) => Array.isArray(r.levels));
  const count = Math.max(0, ...measured.map((r) => r.levels.length));
  return Array.from({ length: count }, (_, i) => ({
    kind: "level",
    label: i === 0 ? "least noise" : i === count - 1 ? "most noise" : "",
    share: count > 1 ? i / (count - 1) : 0,
    points: series(measured, (r) => r.levels[i]),
  }));
}

/**
 * What a tab draws: paths, and what its axes say. Null where there is nothing yet.
 * @param {import("./curve.mjs").Curve} curve
 * @param {keyof typeof TABS} tab
 * @returns {{lines: Drawn[], low: string, high: string, first: string, last: string} | null}
 */
export function plot(curve, tab) {
  const lines = TABS[tab](curve).filter((line) => line.points.length);
  if (!lines.length) return null;
  const range = rangeOf(lines);
  return {
    lines: lines.map(({ points, ...line }) => ({ ...line, path: path(points, range) })),
    low: brief(range.low), high: brief(range.high), first: `step ${range.first}`, last: `${range.last}`,
  };
}

/**
 * The range that holds the lines, a little wider. A raw line counts without its rarest fiftieth on either side: one
 * spike must not press everything else flat.
 * @param {Line[]} lines
 */
export function rangeOf(lines) {
  const steps = lines.flatMap((line) => line.points.map((p) => p.step));
  const values = lines.flatMap(({ kind, points }) => {
    const sorted = points.map((p) => p.value).sort((a, b) => a - b);
    const rare = kind === "raw" ? Math.floor(sorted.length / 50) : 0;
    return [sorted[rare], sorted[sorted.length - 1 - rare]];
  });
  const low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  const floor = low >= 0 ? Math.max(0, low - pad) : low - pad; // none of these quantities goes below zero
  return { low: floor, high: high + pad, first: least(steps), last: greatest(steps) };
}

// Spread arguments have a limit that a long training reaches.
const least = (list) => list.reduce((a, b) => Math.min(a, b), Infinity);
const greatest = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);

/** An SVG path; a single point is a stroke without length, which round caps make a dot. */
function path(points, { low, high, first, last }) {
  const x = (step) => Math.round((SIDE * (step - first)) / Math.max(1, last - first));
  const y = (value) => Math.round(SIDE * (1 - (value - low) / (high - low)));
  const places = points.map((p) => `${x(p.step)} ${y(p.value)}`);
  return `M${places.join("L")}${places.length === 1 ? "h0" : ""}`;
}
