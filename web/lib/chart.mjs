// Draws a curve on a canvas context.
import { headline, smooth } from "./curve.mjs";

const LEFT = 44, TOP = 24, RIGHT = 8, BOTTOM = 10; // pixels
const FAINT = "#4a4843", TEXT = "#c9c6be", RAW = "#3d5a70", MEAN = "#6fb1dd", VALIDATION = "#e0955a";

/**
 * Map points into the plot's rectangle.
 * @param {{step: number, loss: number}[]} points
 * @param {{low: number, high: number, first: number, last: number}} range
 * @param {number} width
 * @param {number} height
 * @returns {[number, number][]}
 */
export function place(points, range, width, height) {
  const wide = width - LEFT - RIGHT, tall = height - TOP - BOTTOM;
  const steps = Math.max(1, range.last - range.first), losses = range.high - range.low || 1;
  return points.map(({ step, loss }) => [
    LEFT + (wide * (step - range.first)) / steps,
    TOP + tall * (1 - (loss - range.low) / losses),
  ]);
}

/** The range that holds all points, a little wider. */
export function rangeOf(points) {
  const losses = points.map((p) => p.loss), steps = points.map((p) => p.step);
  const low = Math.min(...losses), high = Math.max(...losses), pad = (high - low) * 0.05 || 0.05;
  return { low: low - pad, high: high + pad, first: Math.min(...steps), last: Math.max(...steps) };
}

function line(context, places, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.beginPath();
  places.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} width
 * @param {number} height
 * @param {import("./curve.mjs").Curve} curve
 */
export function drawCurve(context, width, height, curve) {
  context.clearRect(0, 0, width, height);
  context.fillStyle = TEXT;
  context.font = "11px system-ui, sans-serif";
  context.fillText(headline(curve), 8, 15);
  if (curve.points.length < 2) return;
  const range = rangeOf([...curve.points, ...curve.validation]);
  for (const share of [0, 0.5, 1]) {
    const y = TOP + (height - TOP - BOTTOM) * share;
    line(context, [[LEFT, y], [width - RIGHT, y]], FAINT, 1);
    context.fillText((range.high - (range.high - range.low) * share).toFixed(3), 6, y + 4);
  }
  line(context, place(curve.points, range, width, height), RAW, 1);
  line(context, place(smooth(curve.points), range, width, height), MEAN, 2);
  if (curve.validation.length) line(context, place(curve.validation, range, width, height), VALIDATION, 2);
}
