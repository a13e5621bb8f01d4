// A training as a value: what the server's folder tells gives one, each event gives the next, the one before stays.

/**
 * @typedef {{step: number, loss?: number|null, learning_rate?: number, grad_norm?: number, seconds?: number,
 *   validation?: number|null, levels?: number[], memory?: number, skipped?: boolean}} Step
 * @typedef {{step: number, note: string}} Note
 * @typedef {{step: number, file: string, time?: number}} Sample
 * @typedef {{step: number, value: number}} Point
 * @typedef {{run: string, phase: string, running: boolean, step: number, total: number, records: Step[],
 *   notes: Note[], samples: Sample[], plan: string, asked: string[], trouble: string}} Curve
 */

const MOST = 1500; // records kept; beyond, every second one goes, validations stay
const MOST_NOTES = 20;
const KEYS = ["step", "loss", "learning_rate", "grad_norm", "seconds", "validation", "levels", "memory", "skipped"];

/** @returns {Curve} */
export function emptyCurve(run = "") {
  return {
    run, phase: "", running: false, step: 0, total: 0, records: [], notes: [], samples: [], plan: "", asked: [],
    trouble: "",
  };
}

/**
 * What the server read in a run's folder. Where a run went back and repeated steps, the later record counts.
 * @param {{name: string, running: boolean, total: number, records: Step[], notes: Note[], samples: Sample[],
 *   plan: string}} answer
 * @returns {Curve}
 */
export function fromRun(answer) {
  const records = [];
  for (const record of answer.records) {
    while (records.length && records.at(-1).step >= record.step) records.pop();
    records.push(record);
  }
  return {
    ...emptyCurve(answer.name), running: answer.running, phase: answer.running ? "train" : "", records,
    step: records.at(-1)?.step ?? 0, total: answer.total, notes: answer.notes, samples: answer.samples,
    plan: answer.plan,
  };
}

/**
 * Continue a curve that was just read with the events that came while it was being read; older ones are in it already.
 * @param {Curve} curve
 * @param {object[]} events
 */
export function catchUp(curve, events) {
  return events
    .filter((e) => !(e.phase === "train" && e.step <= curve.step))
    .reduce((sum, event) => addEvent(sum, event), curve);
}

/**
 * Add what a training tells. Another run starts afresh; a step that is not beyond the last takes the place of what
 * stood there, because a run went back or began anew.
 * @param {Curve} curve
 * @param {{phase: string, run?: string, step?: number, total?: number, note?: string, plan?: string, file?: string,
 *   time?: number}} event
 * @returns {Curve}
 */
export function addEvent(curve, event) {
  const another = event.run && event.run !== curve.run;
  const base = { ...(another ? emptyCurve(event.run) : curve), phase: event.phase, trouble: "" };
  const step = event.step ?? base.step;
  switch (event.phase) {
    case "encode":
      return { ...base, running: false, encoded: [event.step, event.total] };
    case "plan":
      return { ...base, plan: event.plan ?? base.plan };
    case "note":
      return addNote(base, step, event);
    case "sample":
      return addSample({ ...base, running: true }, step, event);
    case "done":
      return { ...base, running: false, asked: [] };
    default: // a step may bring a note and a picture along
      return addSample(addNote(addStep(base, event), step, event), step, event);
  }
}

/** @returns {Curve} */
function addNote(curve, step, { note }) {
  return note ? { ...curve, notes: [...curve.notes, { step, note }].slice(-MOST_NOTES) } : curve;
}

/** A picture drawn again at a step takes the place of the one before. @returns {Curve} */
function addSample(curve, step, { file, time }) {
  if (!file) return curve;
  const samples = [...curve.samples.filter((s) => s.step !== step), { step, file, time }];
  return { ...curve, samples, asked: without(curve.asked, "sample") };
}

/** @returns {Curve} */
function addStep(base, event) {
  const anew = event.step === 1; // pictures and notes are of the run that was here before
  const record = Object.fromEntries(KEYS.filter((k) => event[k] != null).map((k) => [k, event[k]]));
  return {
    ...base, running: true, step: event.step, total: event.total ?? base.total,
    records: thin([...base.records.filter((r) => r.step < event.step), record]),
    notes: anew ? [] : base.notes,
    samples: anew ? [] : base.samples,
    asked: without(base.asked, "save"),
  };
}

const without = (list, item) => list.filter((i) => i !== item);

/** @param {Step[]} records */
export function thin(records) {
  if (records.length <= MOST) return records;
  return records.filter((r, i) => i % 2 === 0 || i === records.length - 1 || Number.isFinite(r.validation));
}

/**
 * One quantity over the steps, where it is a number.
 * @param {Step[]} records
 * @param {(record: Step) => number|null|undefined} read
 * @returns {Point[]}
 */
export function series(records, read) {
  return records.map((r) => ({ step: r.step, value: read(r) })).filter((p) => Number.isFinite(p.value));
}

/**
 * Running mean over about so many steps, corrected for its start. A point stands for all steps since the one before,
 * so a thinned curve and a full one have the same mean.
 * @param {Point[]} points
 * @param {number} span steps
 * @returns {Point[]}
 */
export function smooth(points, span) {
  let mean = 0, weight = 0, before = points.length ? points[0].step - 1 : 0;
  return points.map(({ step, value }) => {
    const kept = Math.exp((before - step) / span);
    mean = kept * mean + (1 - kept) * value;
    weight = kept * weight + (1 - kept);
    before = step;
    return { step, value: mean / weight };
  });
}

/** The loss's running mean, over a fortieth of the run. @param {Curve} curve */
export function smoothLoss(curve) {
  return smooth(series(curve.records, (r) => r.loss), Math.min(250, Math.max(10, (curve.total || curve.step) / 40)));
}
