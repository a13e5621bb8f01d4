import assert from "node:assert/strict";
import { test } from "node:test";
import {
  axis, bars, barAt, format, KINDS, parse, places, PRESETS, restOf, valueAt, valueOf, withBar, withLine, words,
} from "../../web/lib/blocks.mjs";

const at = (text, kind, n, base = "flux1") => parse(text, base).blocks[kind][n];
const round = (text, base = "flux1") => format(parse(text, base));

const READ = [
  ["", "double", 3, 1],
  ["double.0-18 = 0.5", "double", 18, 0.5],
  ["double.3=.25", "double", 3, 0.25],
  ["double.3=.25", "double", 4, 1],
  ["double_blocks.3 = 0.5", "double", 3, 0.5],
  ["double.0-2+7 = 0.5", "double", 7, 0.5],
  ["double.0-2+7 = 0.5", "double", 3, 1],
  ["single.* = 0.5", "single", 37, 0.5],
  ["single = 0..37", "single", 10, 10],
  ["single.37 = 0.2..0.9", "single", 37, 0.2],
  ["single.7 = 1; default = 0", "single", 8, 0],
  ["single.7 = 1; default = 0", "single", 7, 1],
  ["single = 0.5, * = 0.2, single.1 = 1", "single", 0, 0.2],
  ["single = 0.5, * = 0.2, single.1 = 1", "single", 1, 1],
  ["double = 0.5, double.3 = 0.7 # later wins", "double", 3, 0.7],
  ["attention = 0.5, double.3.mlp = 0", "double", 3, 1],
  [Array.from({ length: 57 }, (_, i) => i / 100).join(","), "single", 0, 0.19],
  [["0.5", ...Array(57).fill("0.25")].join(" "), "double", 0, 0.25],
  [["1", "1", "1", ...Array(57).fill("0.25"), "0"].join(","), "single", 37, 0.25],
];

for (const [text, kind, n, value] of READ) {
  test(`${text.slice(0, 40) || "nothing"}: ${kind} ${n}`, () => assert.ok(Math.abs(at(text, kind, n) - value) < 1e-9));
}

for (const [text, words] of [
  ["1, 2", /2 numbers/],
  ["single = x", /no entry/],
  ["= 1", /no entry/],
  ["single = 1, 3", /among patterns/],
  ["some words", /no entry/],
  ["single.38 = 1", /from 0 to 37/],
  ["single.5-2 = 1", /from 0 to 37/],
  ["default = 0..1", /ramp/],
]) {
  test(`${text} is a problem`, () => assert.match(parse(text, "flux1").problem, words));
}

test("a problem still leaves bars to draw", () => {
  for (const text of ["nonsense", "single = 1, 3", "1, 2", "single.38 = 1"]) {
    assert.equal(parse(text, "flux1").blocks.single.length, 38);
    assert.ok(parse(text, "flux1").blocks.single.every(Number.isFinite));
  }
});

test("what is written reads the same, and is short", () => {
  for (const [text, written] of [
    ["", ""],
    ["double = 1, single = 1", ""],
    ["single.0-37=0..1", "single = 0..1"],
    ["single.3-9 = 0.2..0.8", "single.3-9 = 0.2..0.8"],
    ["default = 0, single.20 = 1, single.7+12+16 = 1", "default = 0\nsingle.7+12+16+20 = 1"],
    ["# mine\nsingle.1=.5, attention = .5", "# mine\nsingle.1 = 0.5\nattention = .5"],
    ["attention = 0, * = 0.5", "default = 0.5"],
    ["double.0-2 = 0.1, double.3-5 = 0.2", "double.0-2 = 0.1\ndouble.3-5 = 0.2"],
    [["0.5", ...Array(57).fill("0")].join(","), "double = 0\nsingle = 0\ntext = 0.5\nother = 0.5"],
  ]) assert.equal(round(text), written);
});

test("writing loses nothing: any values come back", () => {
  let seed = 1;
  const random = () => ((seed = (seed * 16807) % 2147483647) / 2147483647);
  for (const base of Object.keys(KINDS)) {
    for (let i = 0; i < 60; i++) {
      let state = parse(i % 3 ? "" : "default = 0.3\nattention = 0.1", base);
      for (let k = 0; k < 6; k++) {
        const count = bars(base).length, [a, b] = [random(), random()].map((r) => Math.floor(r * count));
        const [u, v] = [random(), random()].map((r) => Math.round(r * 30) / 20 - 0.2);
        state = k % 2 ? withLine(state, a, u, b, v) : withBar(state, bars(base)[a], u);
      }
      const again = parse(format(state), base);
      assert.equal(again.problem, "");
      for (const bar of bars(base)) {
        assert.ok(Math.abs(valueOf(again, bar) - valueOf(state, bar)) < 2e-4, `${format(state)} ${words(state, bar)}`);
      }
      assert.deepEqual(again.parts, state.parts);
      assert.equal(format(again), format(parse(format(again), base)));
    }
  }
});

test("a state is a value: changing a bar leaves the one before", () => {
  const first = parse("single = 0.5", "flux1");
  const second = withBar(first, { kind: "single", n: 3 }, 1);
  assert.equal(first.blocks.single[3], 0.5);
  assert.equal(format(second), "single.0-2+4-37 = 0.5");
});

test("a line goes either way and over the gap between kinds", () => {
  const up = withLine(parse("", "flux1"), 17, 0, 20, 0.9);
  assert.deepEqual([17, 18].map((n) => valueOf(up, { kind: "double", n })).map((v) => v.toFixed(2)), ["0.00", "0.30"]);
  assert.equal(valueOf(up, { kind: "single", n: 1 }), 0.9);
  assert.equal(format(withLine(parse("", "flux1"), 20, 0.9, 17, 0)), format(up));
  assert.equal(valueOf(withLine(up, 0, 0.2, 0, 0.7), { kind: "double", n: 0 }), 0.7);
});

test("every preset reads without a problem", () => {
  for (const text of Object.values(PRESETS)) assert.equal(parse(text, "flux1").problem, "");
  assert.equal(round(PRESETS["style blocks"]), PRESETS["style blocks"]);
  assert.equal(round(PRESETS["subject blocks"]), PRESETS["subject blocks"]);
});

test("the axis holds 0 to 1.5 and what lies beyond", () => {
  assert.deepEqual(axis(parse("", "flux1")), { low: 0, high: 1.5 });
  assert.deepEqual(axis(parse("single.1 = -0.7, single.2 = 2.2", "flux1")), { low: -1, high: 2.5 });
});

test("the pointer finds each bar and a value on the step", () => {
  for (const base of Object.keys(KINDS)) {
    places(base).forEach(({ x, width }, i) => assert.equal(barAt(base, x + width / 2), i));
  }
  assert.equal(barAt("flux1", -1), 0);
  assert.equal(barAt("flux1", 2), 56);
  assert.equal(valueAt({ low: 0, high: 1.5 }, 0), 1.5);
  assert.equal(valueAt({ low: 0, high: 1.5 }, 1.2), 0);
  assert.equal(valueAt({ low: 0, high: 1.5 }, 0.345), 1);
});

test("a bar goes back to the default", () => {
  assert.equal(restOf(parse("", "flux1")), 1);
  assert.equal(restOf(parse("default = 0", "flux1")), 0);
});

for (const [text, base, name] of [
  ["singel.mlp = 0.5", "flux1", "singel"],
  ["atention = 0", "flux1", "atention"],
  ["double.0.img_atn = 0", "flux1", "img_atn"],
  ["double.0-3.mpl = 0", "flux1", "mpl"],
  ["double.*.mpl = 0", "flux1", "mpl"],
  ["single = 0.5, vector_in = 0", "flux2", "vector_in"],
  ["joint.0.img_attn = 0", "sd3", "img_attn"],
]) {
  test(`${text} names nothing of ${base}`, () => {
    assert.equal(parse(text, base).problem, `no block or part is called ${name}`);
  });
}

for (const [text, base] of [
  ["attention = 0.5, double.0.mlp = 0, single.0-3.linear1 = 0, text = 0, other = 0, final_layer.linear = 0", "flux1"],
  ["*.img_attn = 0, double.0.img_attn.qkv = 1, double_blocks.3.txt_mlp.0 = 0, clip_l = 0, sing*.1 = 0", "flux1"],
  ["double_stream_modulation_img.lin = 0, modulation = 0", "flux2"],
  ["joint.0.x_block.attn = 0, img = 0", "sd3"],
  ["input.4.1.transformer_blocks = 0, middle.0.in_layers = 0, out.2 = 0", "sdxl"],
]) {
  test(`${text.slice(0, 40)} is known to ${base}`, () => assert.equal(parse(text, base).problem, ""));
}
