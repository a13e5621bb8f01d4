// A training's curve as a value: each event gives a curve, the one before stays as it was.

/**
 * @typedef {{step: number, loss: number}} Point
 * @typedef {{run: string, phase: string, step: number, total: number, points: Point[], validation: Point[],
 *   seconds: number}} Curve
 */

const MOST = 600; // points kept; beyond, every second one goes

/** @returns {Curve} */
export function emptyCurve() {
  return { run: "", phase: "", step: 0, total: 0, points: [], validation: [], seconds: 0 };
}

/**
 * Add what a training tells. Another run, or a step that is not beyond the last, starts a fresh curve.
 * @param {Curve} curve
 * @param {{phase: string, run?: string, step: number, total: number, loss?: number, validation?: number, seconds?: number}} event
 * @returns {Curve}
 */
export function addStep(curve, event) {
  if (event.phase !== "train") return { ...curve, phase: event.phase, step: event.step, total: event.total };
  const afresh = event.run !== curve.run || event.step <= lastStep(curve);
  const base = afresh ? emptyCurve() : curve;
  const next = {
    ...base, run: event.run ?? "", phase: "train", step: event.step, total: event.total,
    seconds: event.seconds ?? base.seconds,
    points: Number.isFinite(event.loss) ? thin([...base.points, { step: event.step, loss: event.loss }]) : base.points,
  };
  if (Number.isFinite(event.validation)) {
    next.validation = [...base.validation, { step: event.step, loss: event.validation }];
  }
  return next;
}

/** @param {Curve} curve */
function lastStep(curve) {
  return curve.points.length ? curve.points[curve.points.length - 1].step : 0;
}

/** @param {Point[]} points */
function thin(points) {
  return points.length <= MOST ? points : points.filter((_, i) => i % 2 === 0 || i === points.length - 1);
}

/**
 * Running mean of losses, corrected for its start.
 * @param {Point[]} points
 * @param {number} share of the mean that a point keeps
 * @returns {Point[]}
 */
export function smooth(points, share = 0.9) {
  let mean = 0, weight = 0;
  return points.map(({ step, loss }) => {
    mean = share * mean + (1 - share) * loss;
    weight = share * weight + (1 - share);
    return { step, loss: mean / weight };
  });
}

/**
 * What stands over the chart.
 * @param {Curve} curve
 */
export function headline(curve) {
  if (curve.phase === "encode") return `encoding ${curve.step} of ${curve.total}`;
  if (!curve.points.length) return "the loss appears here while it trains";
  const last = smooth(curve.points).at(-1);
  const left = (curve.total - curve.step) * curve.seconds;
  const time = curve.step < curve.total && curve.seconds ? `, ${duration(left)} left` : "";
  return `step ${curve.step} of ${curve.total}, loss ${last.loss.toFixed(4)}${time}`;
}

/** Seconds in words: 42 s, 3 min, 2 h 5 min. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
