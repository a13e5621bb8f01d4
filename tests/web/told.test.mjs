import assert from "node:assert/strict";
import test from "node:test";
import { makeTold, toldHeight, wordsOf } from "../../web/lib/told.mjs";

test("the text of an output is its lines, and nothing where there is none", () => {
  assert.equal(wordsOf({ text: ["a", "b\n"] }), "a\nb");
  assert.equal(wordsOf({ text: "a" }), "a");
  assert.equal(wordsOf({ images: [] }), "");
  assert.equal(wordsOf(undefined), "");
});

test("the box grows with its lines up to a limit", () => {
  assert.ok(toldHeight("a\nb") > toldHeight("a"));
  assert.equal(toldHeight("a\n".repeat(100)), toldHeight("a\n".repeat(50)));
});

test("the box is plain text", () => {
  const made = makeTold({ createElement: (tag) => ({ tag }) });
  assert.deepEqual(made, { tag: "pre", className: "flux-atelier-told" });
});
