// What keys mean in the gallery, and which rows are chosen.

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
const PLAIN = new Map(Object.entries({
  k: { do: "decide", decision: "keep" }, r: { do: "decide", decision: "reject" },
  Delete: { do: "decide", decision: null }, Backspace: { do: "decide", decision: null },
  " ": { do: "detail" }, Enter: { do: "detail" }, Escape: { do: "back" },
  e: { do: "edit" }, u: { do: "undo" }, "/": { do: "filter" }, "?": { do: "help" },
}));
const CONTROL = new Map(Object.entries({ a: { do: "all" }, z: { do: "undo" }, " ": { do: "toggle" } }));
/** Keys and their meaning, in the order of the help. */
export const HELP = [
  ["Arrows, Page Up and Down, Home, End", "move"], ["K", "keep, and go on"], ["R", "reject, and go on"],
  ["Delete", "take the decision back"], ["1 to 5", "stars"], ["0", "no stars"], ["Space", "open or close the picture"],
  ["E", "edit the caption"], ["Ctrl+Enter", "save the caption"], ["Esc", "cancel, close, or choose nothing"], ["U", "undo"],
  ["Shift and move or click", "choose a stretch"], ["Ctrl+click, Ctrl+Space", "choose one more"],
  ["Ctrl+A", "choose all that the filter shows"], ["/", "go to the filter"], ["?", "this help"],
];

/** The letter of a key also where the keyboard writes another script. */
function letterOf({ key, code = "" }) {
  const foreign = key.length === 1 && key > "\u007f" && /^Key[A-Z]$/.test(code);
  return (foreign ? code.slice(3) : key).toLowerCase();
}

/**
 * What a key asks for, or null; keys that the browser needs (Ctrl+R) ask for nothing.
 * @param {KeyboardEvent} event
 * @returns {{do: string} | null}
 */
export function actionOf(event) {
  const { key, shiftKey, altKey } = event, control = event.ctrlKey || event.metaKey;
  if (altKey) return null;
  if (MOVES.includes(key)) return { do: "move", key, extend: Boolean(shiftKey) };
  const letter = letterOf(event);
  if (control) return CONTROL.get(letter) ?? null;
  if (/^[0-5]$/.test(key)) return { do: "stars", stars: Number(key) };
  return PLAIN.get(key.length > 1 ? key : letter) ?? null;
}

/** Whether keys belong to a field in which one writes. */
export function isField(element) {
  const tag = element?.tagName;
  return tag === "TEXTAREA" || tag === "SELECT" || (tag === "INPUT" && element.type !== "range") || Boolean(element?.isContentEditable);
}

/** Whether a key presses the thing that has the focus: a button, a link. */
export function presses(element, key) {
  return (key === " " || key === "Enter") && ["BUTTON", "A", "SUMMARY"].includes(element?.tagName);
}

/** Nothing chosen, the first row in focus. `all` means all that the filter shows, read or not. */
export const NONE = Object.freeze({ focus: 0, anchor: 0, ids: Object.freeze([]), all: false });

export const focusOn = (selection, index) => ({ ...selection, focus: index, anchor: index });
export const only = (index) => ({ ...NONE, focus: index, anchor: index });
export const everything = (selection) => ({ ...selection, ids: [], all: true });

/** With one row more, or fewer; taking one out of "all" begins anew with that one. */
export function toggled(selection, index, id) {
  const ids = selection.ids.includes(id) ? selection.ids.filter((other) => other !== id) : [...selection.ids, id];
  return { focus: index, anchor: index, ids: selection.all ? [id] : ids, all: false };
}

/** The stretch from the anchor to an index. */
export const stretch = (selection, index) => ({
  first: Math.min(selection.anchor, index), last: Math.max(selection.anchor, index) + 1,
});

/** The stored row of a row: a variant's id is its row's with a plus and a number, and decisions are about the row. */
export const baseOf = (id) => id.split("+")[0];

/** Whether a row is one of some, or a variant of one. */
export function isOneOf(ids) {
  const bases = new Set(ids.map(baseOf));
  return (row) => bases.has(baseOf(row.id));
}

/** What an action is done to: all, the chosen, or the one in focus. */
export function targets(selection, focused) {
  if (selection.all) return { all: true, ids: [] };
  return { all: false, ids: selection.ids.length ? [...selection.ids] : [focused].filter(Boolean) };
}
