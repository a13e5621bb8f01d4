// What a node says when it has run: plain text in a box that is as high as its lines, up to a limit, and scrolls beyond.

const LINE = 16, PADDING = 14, MOST = 12; // pixels, pixels, lines

/**
 * The text of a node's output, or an empty string.
 * @param {{text?: string[] | string} | undefined} output
 */
export function wordsOf(output) {
  return [output?.text ?? []].flat().join("\n").trim();
}

/** Height of the box in pixels. */
export function toldHeight(words) {
  return Math.min(MOST, words.split("\n").length) * LINE + PADDING;
}

/** @param {Document} document */
export function makeTold(document) {
  const element = document.createElement("pre");
  element.className = "flux-atelier-told";
  return element;
}
