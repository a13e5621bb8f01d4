import assert from "node:assert/strict";
import { test } from "node:test";
import { GAP, gridOf, LABEL, moved, shown, spotOf, topFor } from "../../web/lib/gallery_grid.mjs";

test("a line is filled by as many cells as fit, grown to its width", () => {
  const grid = gridOf(520, 10, 160); // 3 cells of 160 and 4 gaps of 6 are 504; 16 are left over
  assert.deepEqual([grid.columns, grid.side, grid.lines], [3, 165, 4]);
  assert.equal(grid.pitch, 165 + LABEL + GAP);
  assert.equal(grid.height, 4 * grid.pitch + GAP);
});

test("a window narrower than a cell shows one", () => {
  assert.equal(gridOf(90, 5, 160).columns, 1);
});

test("an empty grid shows nothing", () => {
  const grid = gridOf(520, 0, 160);
  assert.deepEqual(shown(grid, 0, 400), { first: 0, last: 0 });
});

test("what is shown covers the window, within a few lines, wherever it is", () => {
  const grid = gridOf(917, 50_000, 143), height = 611;
  for (let top = 0; top < grid.height - height; top += 7919) {
    const { first, last } = shown(grid, top, height, 0);
    assert.ok(spotOf(grid, first).y <= top + GAP);
    assert.ok(last === grid.count || spotOf(grid, last).y >= top + height - GAP);
    const spared = shown(grid, top, height);
    assert.ok(spared.last - spared.first <= grid.columns * (Math.ceil(height / grid.pitch) + 6));
    assert.equal(spared.first % grid.columns, 0);
  }
});

test("revealing moves no more than it must", () => {
  const grid = gridOf(520, 100, 160);
  const at = spotOf(grid, 30).y;
  assert.equal(topFor(grid, 30, at - 50, 600), at - 50); // it is whole in the window
  assert.equal(topFor(grid, 30, at + 1, 600), at - GAP); // above
  assert.equal(topFor(grid, 30, 0, 600), at + grid.pitch - 600); // below
  assert.equal(topFor(grid, 0, 500, 600), 0);
});

const MOVES = [ // 10 rows in 3 columns: 0 1 2 / 3 4 5 / 6 7 8 / 9
  ["ArrowRight", 0, 1], ["ArrowLeft", 0, 0], ["ArrowDown", 1, 4], ["ArrowUp", 1, 1], ["ArrowUp", 4, 1], ["End", 0, 9],
  ["Home", 7, 0], ["ArrowDown", 7, 9], ["ArrowDown", 9, 9], ["ArrowRight", 9, 9], ["PageDown", 0, 6], ["PageUp", 8, 2], ["x", 3, null],
];
for (const [key, from, to] of MOVES) {
  test(`${key} leads from ${from} to ${to}`, () => assert.equal(moved(key, gridOf(520, 10, 160), from, 500), to));
}

test("no cell lies over another", () => {
  const grid = gridOf(700, 40, 120), seen = new Set();
  for (let i = 0; i < 40; i++) {
    const { x, y } = spotOf(grid, i);
    assert.ok(x >= 0 && x + grid.side <= 700);
    assert.ok(!seen.has(`${x},${y}`));
    seen.add(`${x},${y}`);
  }
});
