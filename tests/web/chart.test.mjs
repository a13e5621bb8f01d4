import assert from "node:assert/strict";
import { test } from "node:test";
import { emptyCurve, fromRun } from "../../web/lib/curve.mjs";
import { plot, rangeOf, SIDE, TABS } from "../../web/lib/chart.mjs";
import { COLORS } from "../../web/lib/style.mjs";

const curveOf = (records) =>
  fromRun({ name: "r", running: false, total: 100, records, notes: [], samples: [], plan: "" });
const places = (path) => [...path.matchAll(/[ML](-?\d+) (-?\d+)/g)].map(([, x, y]) => [Number(x), Number(y)]);

test("nothing measured draws nothing, in every tab", () => {
  for (const tab of Object.keys(TABS)) assert.equal(plot(emptyCurve(), tab), null);
});

test("points run from left to right, the lowest at the bottom", () => {
  const drawn = plot(curveOf([{ step: 1, learning_rate: 4 }, { step: 3, learning_rate: 2 }, { step: 5, learning_rate: 1 }]), "rate");
  const [first, middle, last] = places(drawn.lines[0].path);
  assert.deepEqual([first[0], middle[0], last[0]], [0, SIDE / 2, SIDE]);
  assert.ok(0 < first[1] && first[1] < middle[1] && middle[1] < last[1] && last[1] < SIDE);
  assert.deepEqual([drawn.first, drawn.last], ["step 1", "5"]);
});

test("the loss has its three lines, validation only where it was measured", () => {
  const records = [{ step: 1, loss: 1 }, { step: 2, loss: 2, validation: 1.5 }];
  assert.deepEqual(plot(curveOf(records), "loss").lines.map((l) => l.kind), ["raw", "mean", "validation"]);
  assert.deepEqual(plot(curveOf(records.slice(0, 1)), "loss").lines.map((l) => l.kind), ["raw", "mean"]);
});

test("a single point is a dot", () => {
  assert.match(plot(curveOf([{ step: 4, grad_norm: 1 }]), "gradient").lines[0].path, /^M0 \d+h0$/);
});

test("a level of noise each has its line, named at the ends", () => {
  const drawn = plot(curveOf([{ step: 10, levels: [0.9, 0.5, 0.2] }, { step: 15 }, { step: 20, levels: [0.8, 0.4, 0.1] }]), "noise levels");
  assert.deepEqual(drawn.lines.map((l) => [l.label, l.share]), [["least noise", 0], ["", 0.5], ["most noise", 1]]);
  assert.ok(drawn.lines.every((l) => places(l.path).length === 2));
});

test("one spike does not press the others flat", () => {
  const points = Array.from({ length: 100 }, (_, i) => ({ step: i + 1, value: i === 50 ? 1000 : 1 + i / 100 }));
  assert.ok(rangeOf([{ kind: "raw", points }]).high < 3);
  assert.ok(rangeOf([{ kind: "mean", points }]).high > 1000);
});

test("a constant has a range, and nothing goes below zero", () => {
  const range = rangeOf([{ kind: "mean", points: [{ step: 1, value: 0 }, { step: 2, value: 0 }] }]);
  assert.ok(range.low === 0 && range.high > 0);
});

test("lines stand out from the backgrounds of ComfyUI's themes", () => {
  // --comfy-input-bg of the themes that the frontend brings.
  const backgrounds = { dark: ["#222222", "#2e3440", "#2b2f38", "#161b22", "#002b36"], light: ["#c9c9c9", "#ffffff"] };
  for (const [theme, list] of Object.entries(backgrounds)) {
    for (const background of list) {
      for (const color of Object.values(COLORS[theme])) assert.ok(contrast(color, background) >= 3, `${color} on ${background}`);
    }
  }
});

/** WCAG 2.1, relative luminance and contrast ratio. */
function contrast(a, b) {
  const [low, high] = [a, b].map(luminance).sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

function luminance(color) {
  const channels = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16) / 255);
  const [r, g, b] = channels.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
