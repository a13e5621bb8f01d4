// Where the cells of a long grid are: plain numbers, in pixels of the scrolled surface. Only what is near the window is
// in the document, so 50,000 rows cost as much as 50. Browsers cut surfaces above some 17 million pixels: a million rows.

export const GAP = 6; // between cells, and around them
export const LABEL = 34; // two lines of words under a picture
const SPARE = 2; // lines of cells above and below the window, so a turn of the wheel shows no holes

/**
 * @param {number} width of the window
 * @param {number} count of rows
 * @param {number} wanted width of a cell; it grows until the line is full
 */
export function gridOf(width, count, wanted) {
  const columns = Math.max(1, Math.floor((width - GAP) / (wanted + GAP)));
  const side = Math.max(1, Math.floor((width - GAP * (columns + 1)) / columns));
  const pitch = side + LABEL + GAP;
  const lines = Math.ceil(count / columns);
  return { columns, side, pitch, lines, count, height: lines * pitch + GAP };
}

/** Indices from first to before last that a window shows, with some spare. */
export function shown(grid, top, height, spare = SPARE) {
  const from = Math.max(0, Math.floor((top - GAP) / grid.pitch) - spare);
  const to = Math.min(grid.lines, Math.ceil((top + height) / grid.pitch) + spare);
  return { first: Math.min(grid.count, from * grid.columns), last: Math.max(0, Math.min(grid.count, to * grid.columns)) };
}

export function spotOf(grid, index) {
  const line = Math.floor(index / grid.columns), column = index % grid.columns;
  return { x: GAP + column * (grid.side + GAP), y: GAP + line * grid.pitch };
}

/** The nearest scroll position at which a cell is whole in the window. */
export function topFor(grid, index, top, height) {
  const { y } = spotOf(grid, index);
  const low = y - GAP, high = y + grid.pitch - height;
  return Math.max(0, low < top || high > low ? low : Math.max(top, high));
}

/** Where a key leads from an index, or null for other keys. */
export function moved(key, grid, index, height) {
  const page = grid.columns * Math.max(1, Math.floor(height / grid.pitch));
  const by = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns, PageUp: -page, PageDown: page,
    Home: -grid.count, End: grid.count,
  }[key];
  if (by === undefined) return null;
  const last = grid.count - 1, to = index + by;
  if (Math.abs(by) === grid.columns && (to < 0 || (to > last && sameLine(grid, index, last)))) return index;
  return Math.min(last, Math.max(0, to));
}

const sameLine = (grid, a, b) => Math.floor(a / grid.columns) === Math.floor(b / grid.columns);
