import assert from "node:assert/strict";
import { test } from "node:test";
import { addEvent, catchUp, emptyCurve, fromRun, series, smooth, smoothLoss } from "../../web/lib/curve.mjs";

const step = (n, loss, more = {}) => ({ phase: "train", run: "r", step: n, total: 100, loss, seconds: 2, ...more });
const answer = (more = {}) => ({
  name: "r", running: false, total: 100, records: [], notes: [], samples: [], plan: "", ...more,
});
const losses = (curve) => series(curve.records, (r) => r.loss).map((p) => p.value);
const steps = (curve) => curve.records.map((r) => r.step);

test("steps add up and the curve before stays as it was", () => {
  const first = addEvent(emptyCurve(), step(1, 1));
  const second = addEvent(first, step(2, 0.5, { validation: 0.7, levels: [0.1, 0.2], node: "6" }));
  assert.deepEqual(first.records, [{ step: 1, loss: 1, seconds: 2 }]);
  assert.deepEqual(second.records[1], { step: 2, loss: 0.5, seconds: 2, validation: 0.7, levels: [0.1, 0.2] });
  assert.ok(second.running && second.step === 2 && second.total === 100);
});

test("another run starts afresh", () => {
  const curve = addEvent(addEvent(emptyCurve(), step(1, 1)), step(2, 1));
  const other = addEvent(curve, step(3, 1, { run: "other" }));
  assert.deepEqual([other.run, steps(other)], ["other", [3]]);
});

test("a run that went back replaces what stood there", () => {
  const curve = [1, 2, 3, 4, 5].reduce((c, n) => addEvent(c, step(n, n)), emptyCurve());
  const noted = addEvent(curve, { phase: "note", run: "r", step: 5, note: "rolled back to step 2" });
  const back = addEvent(noted, step(3, 0.3));
  assert.deepEqual(losses(back), [1, 2, 0.3]);
  assert.equal(back.step, 3);
  assert.deepEqual(back.notes, [{ step: 5, note: "rolled back to step 2" }]);
});

test("a run that begins anew leaves the pictures and notes of the one before", () => {
  const old = fromRun(answer({ records: [step(1, 1), step(2, 1)], samples: [{ step: 2, file: "a.png" }], notes: [{ step: 1, note: "x" }] }));
  const anew = addEvent(old, step(1, 0.9));
  assert.deepEqual([losses(anew), anew.samples, anew.notes], [[0.9], [], []]);
});

test("a folder's records are read, repeated steps count once, the later one", () => {
  const curve = fromRun(answer({ running: true, records: [1, 2, 3, 4, 3, 4].map((n, i) => ({ step: n, loss: i })) }));
  assert.deepEqual([steps(curve), losses(curve)], [[1, 2, 3, 4], [0, 1, 4, 5]]);
  assert.ok(curve.running && curve.step === 4 && curve.total === 100);
});

test("events that came while the folder was read are added once", () => {
  const read = fromRun(answer({ records: [step(1, 1), step(2, 2)] }));
  const late = [step(1, 9), step(2, 9), step(3, 3), { phase: "sample", run: "r", step: 3, file: "step-000003.png", time: 5 }];
  const curve = catchUp(read, late);
  assert.deepEqual(losses(curve), [1, 2, 3]);
  assert.deepEqual(curve.samples, [{ step: 3, file: "step-000003.png", time: 5 }]);
});

test("the same picture drawn again takes the place of the one before", () => {
  const first = addEvent(emptyCurve("r"), { phase: "sample", run: "r", step: 5, file: "a.png", time: 1 });
  const again = addEvent(first, { phase: "sample", run: "r", step: 5, file: "a.png", time: 2 });
  assert.deepEqual(again.samples, [{ step: 5, file: "a.png", time: 2 }]);
});

test("a step may bring a note and a picture along", () => {
  const curve = addEvent(emptyCurve(), step(4, 1, { note: "loss ran away", file: "step-000004.png", time: 3 }));
  assert.deepEqual(curve.notes, [{ step: 4, note: "loss ran away" }]);
  assert.deepEqual(curve.samples, [{ step: 4, file: "step-000004.png", time: 3 }]);
  assert.deepEqual(addEvent(curve, step(5, 1)).notes, curve.notes);
});

test("plan, encoding and the end change what they speak of and nothing else", () => {
  const curve = addEvent(emptyCurve(), step(7, 1));
  const planned = addEvent(curve, { phase: "plan", run: "r", plan: "3 pictures, 40 rounds" });
  assert.equal(planned.plan, "3 pictures, 40 rounds");
  const encoding = addEvent(planned, { phase: "encode", step: 2, total: 9 });
  assert.deepEqual([encoding.step, encoding.total, encoding.encoded, encoding.running], [7, 100, [2, 9], false]);
  const done = addEvent({ ...planned, asked: ["stop"] }, { phase: "done", run: "r", step: 7, total: 100 });
  assert.deepEqual([done.running, done.asked, done.records.length], [false, [], 1]);
});

test("a wish is forgotten when it was heard", () => {
  const asked = { ...addEvent(emptyCurve(), step(1, 1)), asked: ["save", "sample", "stop"] };
  const next = addEvent(asked, step(2, 1));
  assert.deepEqual(next.asked, ["sample", "stop"]);
  assert.deepEqual(addEvent(next, { phase: "sample", run: "r", step: 2, file: "a.png" }).asked, ["stop"]);
});

test("a loss that is no number leaves no point", () => {
  const curve = addEvent(addEvent(emptyCurve(), step(1, null, { skipped: true })), step(2, 1));
  assert.deepEqual([steps(curve), losses(curve)], [[1, 2], [1]]);
});

test("a long training stays within the limit and keeps its last step and all validations", () => {
  let curve = emptyCurve();
  for (let i = 1; i <= 5000; i++) curve = addEvent(curve, step(i, 1 / i, i % 50 ? {} : { validation: 1 }));
  assert.ok(curve.records.length <= 1600);
  assert.equal(curve.records.at(-1).step, 5000);
  assert.equal(series(curve.records, (r) => r.validation).length, 100);
});

test("the running mean starts at the first value and follows a constant exactly", () => {
  assert.deepEqual(smooth([], 10), []);
  assert.ok(Math.abs(smooth([{ step: 1, value: 3 }], 10)[0].value - 3) < 1e-12);
  for (const p of smooth([1, 2, 3, 9].map((s) => ({ step: s, value: 2 })), 10)) assert.ok(Math.abs(p.value - 2) < 1e-12);
});

test("a thinned curve has about the mean of the full one", () => {
  const records = Array.from({ length: 2000 }, (_, i) => ({ step: i + 1, loss: 1 / (1 + i / 300) }));
  const [full, thin] = [records, records.filter((_, i) => i % 4 === 3)]
    .map((r) => smoothLoss({ ...emptyCurve(), records: r, total: 2000 }).at(-1).value);
  assert.ok(Math.abs(full - thin) < 0.005 * full);
});
