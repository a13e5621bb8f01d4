import assert from "node:assert/strict";
import { test } from "node:test";
import { addStep, duration, emptyCurve, headline, smooth } from "../../web/lib/curve.mjs";
import { drawCurve, place, rangeOf } from "../../web/lib/chart.mjs";

const step = (n, loss, more = {}) => ({ phase: "train", run: "r", step: n, total: 100, loss, seconds: 2, ...more });

test("steps add up and the curve before stays as it was", () => {
  const first = addStep(emptyCurve(), step(1, 1));
  const second = addStep(first, step(2, 0.5, { validation: 0.7 }));
  assert.deepEqual(first.points, [{ step: 1, loss: 1 }]);
  assert.deepEqual(second.points.map((p) => p.loss), [1, 0.5]);
  assert.deepEqual(second.validation, [{ step: 2, loss: 0.7 }]);
});

test("another run or an earlier step starts afresh", () => {
  const curve = addStep(addStep(emptyCurve(), step(1, 1)), step(2, 1));
  assert.equal(addStep(curve, step(3, 1, { run: "other" })).points.length, 1);
  assert.equal(addStep(curve, step(1, 1)).points.length, 1);
});

test("a loss that is no number leaves no point", () => {
  assert.equal(addStep(emptyCurve(), step(1, NaN)).points.length, 0);
});

test("a long training stays within the limit and keeps its last step", () => {
  let curve = emptyCurve();
  for (let i = 1; i <= 5000; i++) curve = addStep(curve, step(i, 1 / i));
  assert.ok(curve.points.length <= 601);
  assert.equal(curve.points.at(-1).step, 5000);
});

test("the running mean starts at the first value and follows a constant exactly", () => {
  assert.deepEqual(smooth([{ step: 1, loss: 3 }]), [{ step: 1, loss: 3 }]);
  for (const p of smooth([1, 2, 3, 4].map((s) => ({ step: s, loss: 2 })))) assert.ok(Math.abs(p.loss - 2) < 1e-12);
});

test("the headline says what goes on", () => {
  assert.equal(headline(emptyCurve()), "the loss appears here while it trains");
  assert.equal(headline(addStep(emptyCurve(), { phase: "encode", step: 3, total: 9 })), "encoding 3 of 9");
  assert.equal(headline(addStep(emptyCurve(), step(40, 0.25))), "step 40 of 100, loss 0.2500, 2 min left");
  assert.equal(headline(addStep(emptyCurve(), step(100, 0.25))), "step 100 of 100, loss 0.2500");
});

test("durations read well", () => {
  assert.deepEqual([42, 180, 7500].map(duration), ["42 s", "3 min", "2 h 5 min"]);
});

test("points land inside the plot, the lowest loss at the bottom", () => {
  const points = [{ step: 1, loss: 1 }, { step: 5, loss: 0 }];
  const [[x0, y0], [x1, y1]] = place(points, rangeOf(points), 300, 140);
  assert.ok(x0 === 44 && x1 === 292);
  assert.ok(y0 > 24 && y0 < y1 && y1 < 130);
});

test("drawing asks the canvas for the lines it has", () => {
  const calls = [];
  const context = new Proxy({}, { get: (_, name) => (...args) => calls.push([name, args]), set: () => true });
  drawCurve(context, 300, 140, addStep(addStep(emptyCurve(), step(1, 1)), step(2, 0.5, { validation: 0.8 })));
  assert.equal(calls.filter(([name]) => name === "stroke").length, 6);
});
