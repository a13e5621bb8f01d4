// What the panels of Compare Pictures and Compare Videos reckon: addresses, pairs, the slider, pages and words. Pure.

export const CENTER = 0.5;
const STEP = 0.01, LEAP = 0.1; // shares of the width, by an arrow key and with Shift
const limit = (value, low, high) => Math.min(high, Math.max(low, value));

/** Where ComfyUI serves a saved file. */
export function addressOf({ filename, subfolder = "", type = "temp" }) {
  return `/view?${new URLSearchParams({ filename, subfolder, type })}`;
}

const isSaved = (item) => typeof item?.filename === "string" && item.filename !== "";

/**
 * What a node has put out, as pairs; the one picture of a side stands for all of the other.
 * @param {{atelier_before?: object[], atelier_after?: object[]} | undefined} output
 * @returns {{before: object, after: object}[]} none where a side is missing
 */
export function pairsOf(output) {
  const [before, after] = [output?.atelier_before, output?.atelier_after].map((side) => [side ?? []].flat().filter(isSaved));
  if (!before.length || !after.length) return [];
  const count = Math.max(before.length, after.length);
  const at = (side, i) => (side.length === 1 ? side[0] : side[i]);
  return Array.from({ length: count }, (_, i) => ({ before: at(before, i), after: at(after, i) })).filter(
    (pair) => pair.before && pair.after,
  );
}

/** Whether two lists of pairs are of the same files: a result that comes again changes nothing. */
export function isSame(first, second) {
  const names = (pairs) => pairs.map(({ before, after }) => `${addressOf(before)} ${addressOf(after)}`).join("\n");
  return names(first) === names(second);
}

/** Where a pointer is in a box, as a share of its width. */
export function shareAt(x, left, width) {
  return width > 0 ? limit((x - left) / width, 0, 1) : CENTER;
}

/** Where a key moves the slider to, or null. */
export function shareBy({ key, shiftKey }, share) {
  const by = shiftKey ? LEAP : STEP;
  const to = { ArrowLeft: share - by, ArrowRight: share + by, Home: 0, End: 1 }[key];
  return to === undefined ? null : Number(limit(to, 0, 1).toFixed(4));
}

/** Which picture a key or a step leads to; the last one goes on to the first. */
export function pageBy(step, index, count) {
  const by = { PageUp: -1, PageDown: 1 }[step] ?? (typeof step === "number" ? Math.sign(step) : 0);
  return by === 0 || count < 2 ? null : (index + by + count) % count;
}

/** The slider in words, for those who do not see it. */
export function shareWords(share) {
  return `${Math.round(share * 100)} % before, ${Math.round((1 - share) * 100)} % after`;
}

/** Seconds as 1:02.5 */
export function clock(seconds) {
  if (!Number.isFinite(seconds)) return "0:00.0";
  const tenths = Math.floor(Math.max(0, seconds) * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

const size = ({ width, height }) => (width > 0 && height > 0 ? `${width} × ${height}` : "");
const short = (number, digits) => String(Number(Number(number).toFixed(digits)));

/** Sizes of two pictures or videos, with rates and lengths of videos; each said once where both are alike. */
export function factsLine(before, after) {
  const parts = [
    size,
    ({ rate }) => (rate > 0 ? `${short(rate, 3)} fps` : ""),
    ({ seconds }) => (Number.isFinite(seconds) ? `${short(seconds, 2)} s` : ""),
  ];
  return parts
    .map((part) => [...new Set([part(before), part(after)])].filter(Boolean).join(" and "))
    .filter(Boolean)
    .join(", ");
}

/** Width by height of what is shown, from what is known of the first of two; 1 before anything is. */
export function ratioOf(...sizes) {
  const known = sizes.find(({ width, height }) => width > 0 && height > 0);
  return known ? known.width / known.height : 1;
}
