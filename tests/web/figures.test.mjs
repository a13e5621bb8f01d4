import assert from "node:assert/strict";
import { test } from "node:test";
import { addEvent, emptyCurve, fromRun } from "../../web/lib/curve.mjs";
import { brief, duration, figures, headline, latestNote } from "../../web/lib/figures.mjs";

const step = (n, more = {}) => ({
  phase: "train", run: "r", step: n, total: 100, loss: 0.25, learning_rate: 2e-4, grad_norm: 0.512, seconds: 2, ...more,
});
const run = (more = {}) => fromRun({
  name: "r", running: false, total: 100, records: [], notes: [], samples: [], plan: "", ...more,
});

test("the figures of a running training", () => {
  const curve = addEvent(addEvent(emptyCurve(), step(39, { validation: 0.3, memory: 12.3 * 2 ** 30 })), step(40));
  assert.deepEqual(Object.fromEntries(figures(curve)), {
    step: "40 / 100", loss: "0.2500", validation: "0.3000", rate: "2e-4", gradient: "0.512", memory: "12.3 GiB",
    "s / step": "2", "time left": "2 min",
  });
});

test("what was not measured is a dash", () => {
  assert.ok(figures(emptyCurve()).every(([, value]) => value === "\u2013"));
});

test("one slow step does not change the time left", () => {
  const records = [1, 2, 3, 4, 5].map((n) => step(n, { seconds: n === 5 ? 60 : 1 }));
  const left = Object.fromEntries(figures(run({ running: true, records })))["time left"];
  assert.equal(left, "2 min");
});

test("a run at rest has no time left", () => {
  assert.equal(Object.fromEntries(figures(run({ records: [step(5)] })))["time left"], "\u2013");
});

test("the headline says what goes on", () => {
  assert.equal(headline(emptyCurve()), "not trained yet");
  assert.equal(headline(addEvent(emptyCurve(), { phase: "encode", step: 3, total: 9 })), "encoding 3 of 9");
  assert.equal(headline(addEvent(emptyCurve(), step(40))), "training");
  assert.equal(headline(run({ records: [step(100)] })), "finished at step 100");
  assert.equal(headline(run({ records: [step(40)] })), "stopped at step 40 of 100, queue it to go on");
  assert.equal(headline({ ...run(), trouble: "It is not training." }), "It is not training.");
});

test("the latest note is shown", () => {
  const notes = [{ step: 20, note: "first" }, { step: 120, note: "rolled back to step 100" }];
  assert.equal(latestNote(run({ notes })), "step 120: rolled back to step 100");
  assert.equal(latestNote(run()), "");
});

test("numbers are short", () => {
  const cases = [[0.002, "0.002"], [0.00015, "1.5e-4"], [1e-6, "1e-6"], [0, "0"], [12.3456, "12.3"], [1234.5, "1230"], [123456, "1.23e5"], [NaN, "\u2013"], [undefined, "\u2013"]];
  for (const [value, text] of cases) assert.equal(brief(value), text);
});

test("durations read well", () => {
  assert.deepEqual([42, 180, 7500].map(duration), ["42 s", "3 min", "2 h 5 min"]);
});
