import assert from "node:assert/strict";
import { test } from "node:test";
import { inTurn, isViewName, makeClient } from "../../web/lib/gallery_client.mjs";
import {
  actionOf, baseOf, everything, focusOn, HELP, isField, isOneOf, NONE, only, presses, stretch, targets, toggled,
} from "../../web/lib/gallery_keys.mjs";
import { fitting, recall, remember } from "../../web/lib/gallery_memory.mjs";
import { Thumbs } from "../../web/lib/gallery_thumbs.mjs";
import {
  countsLine, decided, draftOf, factsOf, isLocked, nearness, noteOf, recounted, sentenceOf, starred, textsOf, undone, whyOf, withTexts,
} from "../../web/lib/gallery_words.mjs";

const press = (key, more = {}) => actionOf({ key, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...more });
const KEYS = [
  ["k", {}, { do: "decide", decision: "keep" }], ["K", { shiftKey: true }, { do: "decide", decision: "keep" }],
  ["r", {}, { do: "decide", decision: "reject" }], ["Delete", {}, { do: "decide", decision: null }],
  ["r", { ctrlKey: true }, null], ["r", { metaKey: true }, null], ["k", { altKey: true }, null],
  ["л", { code: "KeyK" }, { do: "decide", decision: "keep" }], // a Russian keyboard
  ["a", { ctrlKey: true }, { do: "all" }], ["a", { metaKey: true }, { do: "all" }], ["a", {}, null],
  ["z", { ctrlKey: true }, { do: "undo" }], ["u", {}, { do: "undo" }], ["4", {}, { do: "stars", stars: 4 }], ["0", {}, { do: "stars", stars: 0 }],
  ["6", {}, null], [" ", {}, { do: "detail" }], [" ", { ctrlKey: true }, { do: "toggle" }], ["Enter", { ctrlKey: true }, null],
  ["/", {}, { do: "filter" }], ["?", { shiftKey: true }, { do: "help" }], ["Escape", {}, { do: "back" }], ["Tab", {}, null],
  ["ArrowDown", { shiftKey: true }, { do: "move", key: "ArrowDown", extend: true }], ["F5", {}, null], ["constructor", {}, null],
];
for (const [key, more, action] of KEYS) {
  test(`key ${JSON.stringify(key)} with ${JSON.stringify(more)}`, () => assert.deepEqual(press(key, more) ?? null, action));
}

test("keys belong to fields in which one writes, and to buttons", () => {
  for (const tagName of ["TEXTAREA", "SELECT", "INPUT"]) assert.equal(isField({ tagName, type: "text" }), true);
  assert.equal(isField({ tagName: "INPUT", type: "range" }), false);
  assert.equal(isField({ tagName: "DIV" }), false);
  assert.equal(presses({ tagName: "BUTTON" }, " "), true);
  assert.equal(presses({ tagName: "BUTTON" }, "k"), false);
  assert.equal(HELP.every((line) => line.length === 2 && line.every(Boolean)), true);
});

test("choosing: one, one more, a stretch, all", () => {
  const at = focusOn(NONE, 4);
  assert.deepEqual(targets(at, "d"), { all: false, ids: ["d"] });
  assert.deepEqual(targets(NONE, undefined), { all: false, ids: [] });
  const two = toggled(toggled(at, 4, "d"), 7, "g");
  assert.deepEqual([two.ids, two.focus, two.anchor], [["d", "g"], 7, 7]);
  assert.deepEqual(toggled(two, 4, "d").ids, ["g"]);
  assert.deepEqual(stretch({ ...at, anchor: 9 }, 4), { first: 4, last: 10 });
  assert.deepEqual(targets(everything(two), "d"), { all: true, ids: [] });
  assert.deepEqual(toggled(everything(two), 1, "b").ids, ["b"]);
  assert.deepEqual(only(3), { focus: 3, anchor: 3, ids: [], all: false });
  assert.deepEqual(two.ids, ["d", "g"]); // nothing was written into
});

test("what is decided of a row holds for its variants", () => {
  assert.equal(baseOf("ab12+3"), "ab12");
  const concerns = isOneOf(["ab12+3"]);
  assert.deepEqual([{ id: "ab12" }, { id: "ab12+1" }, { id: "ab1" }].map(concerns), [true, true, false]);
});

test("sentences", () => {
  const row = { id: "a", path: "x/y.png", decision: "keep", stars: 2, captions: [{ text: "t", author: "human" }], left_out: null };
  assert.equal(decided("keep", 1, row), "Kept y.png.");
  assert.equal(decided("reject", 1200), "Rejected 1,200 pictures.");
  assert.equal(decided(null, 2), "Took the decision on 2 pictures back.");
  assert.equal(starred(1, 1, row), "Gave y.png 1 star.");
  assert.equal(starred(0, 3), "Took the stars of 3 pictures away.");
  assert.equal(undone({ undone: "reject 3 pictures" }), "Undone: reject 3 pictures.");
  assert.equal(undone({ undone: null }), "There is nothing to undo.");
  assert.equal(sentenceOf(row), "x/y.png, keep, 2 stars, caption by a person");
  assert.equal(noteOf({ stars: 3, left_out: { reason: "blurred" } }), "★★★  blurred");
  assert.equal(nearness({ distance: 1 }), "1 bit");
  assert.deepEqual(countsLine({ keep: 1, reject: 2, undecided: 50000 }), ["kept 1", "rejected 2", "undecided 50,000"]);
});

test("counts follow decisions", () => {
  const counts = { keep: 1, reject: 1, undecided: 2, left_out: 5 };
  const next = recounted(counts, [{ decision: null }, { decision: "reject" }], "keep");
  assert.deepEqual(next, { keep: 3, reject: 0, undecided: 1, left_out: 5 });
  assert.deepEqual(recounted(next, [{ decision: "keep" }], null), { keep: 2, reject: 0, undecided: 2, left_out: 5 });
});

test("a person's caption comes first, is locked, and the others stay", () => {
  const model = { text: "m", author: "model", model: "florence" };
  const row = { captions: [model, { text: "one", author: "human" }, { text: "two", author: "human" }] };
  assert.deepEqual([isLocked(row), isLocked({ captions: [model] })], [true, false]);
  assert.deepEqual([draftOf(row), draftOf({ captions: [model] }), draftOf({})], ["one", "m", ""]);
  assert.deepEqual(textsOf(row, " 1 "), ["1", "two"]);
  assert.deepEqual(textsOf(row, " "), ["two"]);
  assert.deepEqual(textsOf({ captions: [model] }, ""), []);
  assert.deepEqual(withTexts(row, ["1"]).captions, [{ text: "1", author: "human", model: "" }, model]);
});

test("facts leave out what is not known", () => {
  const facts = Object.fromEntries(factsOf({ width: 4, height: 3, crop: [1, 0, 2, 3], tags: ["a", "b"], repeats: 1, scores: { blur: 0.12345, odd: null } }));
  assert.deepEqual(facts, { Size: "4 × 3", Decision: "undecided", Crop: "2 × 3 at 1, 0", Tags: "a, b", blur: "0.123" });
});

test("why a copy is in its group", () => {
  const group = { rows: [{ id: "a", path: "a.png" }, { id: "b", path: "b.png" }, { id: "c" }], why: [["a", "b", "same pixels"], ["b", "c", "flipped"]] };
  assert.deepEqual(whyOf(group, "b"), ["same pixels (a.png)", "flipped (c)"]);
  assert.deepEqual(whyOf(group, "z"), []);
});

const NAMES = [
  ["cats-0123abcd/0123456789abcdef", true], ["cats/0123456789ABCDEF", false], ["a/b/0123456789abcdef", false], ["../0123456789abcdef", false],
  ["cats/0123", false], [undefined, false], [{}, false],
];
for (const [name, good] of NAMES) test(`view name ${name}`, () => assert.equal(isViewName(name), good));

function client(answer) {
  const asked = [];
  const ask = async (path, options) => {
    asked.push([path, options]);
    return answer(path);
  };
  return { asked, ...makeClient({ ask, address: (path) => `/api${path}` }, "ca ts-1/0123456789abcdef") };
}
const json = (body, status = 200) => ({ ok: status < 400, status, json: async () => body });

test("the contract's addresses and bodies", async () => {
  const it = client(() => json({}));
  const home = "/flux_atelier/datasets/ca%20ts-1", view = `${home}/views/0123456789abcdef`;
  await it.rows({ offset: 200, limit: 200, query: { filter: "a & b", order: "-blur", group: "left_out" } });
  await it.decide({ filter: "undecided" }, "reject", "blurred");
  await it.stars({ ids: ["a"] }, 0);
  await it.caption("a", ["x"]);
  await it.undo();
  await it.similar("a+1");
  assert.deepEqual(it.asked.map(([path]) => path), [
    `${view}/rows?offset=200&limit=200&filter=a+%26+b&order=-blur&group=left_out`, `${view}/decide`, `${view}/stars`, `${view}/caption`,
    `${home}/undo`, `${view}/similar/a%2B1?n=12`,
  ]);
  const said = it.asked.slice(1, 5).map(([, { body, method, headers }]) => [method, headers["Content-Type"], JSON.parse(body)]);
  assert.deepEqual(said.map((one) => one[2]), [
    { filter: "undecided", decision: "reject", reason: "blurred" }, { ids: ["a"], stars: 0 }, { id: "a", texts: ["x"] }, {},
  ]);
  assert.ok(said.every(([method, kind]) => method === "POST" && kind === "application/json"));
  assert.equal(it.thumb({ id: "a", digest: "d" }), `/api${home}/thumbs/a?v=d`);
  assert.equal(it.picture({ id: "a+1" }, true), `/api${home}/pictures/a%2B1?side=1600&view=0123456789abcdef&done=1&v=`);
});

test("every refusal is a sentence", async () => {
  await assert.rejects(client(() => json({ error: "No such view." }, 404)).view(), { message: "No such view.", status: 404 });
  await assert.rejects(client(() => ({ ok: false, status: 500, json: async () => { throw new SyntaxError("<html>"); } })).view(), /answered 500/);
  await assert.rejects(client(() => { throw new TypeError("failed to fetch"); }).view(), { message: /does not answer/, status: 0 });
  const stopped = new DOMException("stopped", "AbortError");
  await assert.rejects(client(() => { throw stopped; }).view(), stopped);
});

test("writes go one after another, also after one has failed", async () => {
  const turn = inTurn(), seen = [], ends = [];
  const write = (name) => () => new Promise((done, fail) => {
    seen.push(name);
    ends.push(name === "b" ? () => fail(new Error(name)) : done);
  });
  const all = ["a", "b", "c"].map((name) => turn(write(name)).catch((error) => error.message));
  for (let i = 0; i < 3; i++) {
    await new Promise((done) => setTimeout(done, 0));
    assert.deepEqual(seen, ["a", "b", "c"].slice(0, i + 1));
    ends[i]();
  }
  assert.deepEqual(await Promise.all(all), [undefined, "b", undefined]);
});

test("the memory of a view survives, and nonsense in it does not", () => {
  const held = new Map(), storage = { getItem: (key) => held.get(key) ?? null, setItem: (key, value) => held.set(key, value) };
  const state = { ...fitting(null), filter: "undecided", top: 900, focus: 12, ids: ["a"] };
  assert.equal(remember(storage, "s/k", state), true);
  assert.deepEqual(recall(storage, "s/k"), state);
  assert.deepEqual(recall(storage, "s/other", { filter: "kept" }).filter, "kept");
  held.set([...held.keys()][0], '{"filter": 3, "tab": "x", "size": 1e9, "focus": -1, "ids": "no", "top": 5}');
  assert.deepEqual(recall(storage, "s/k"), { ...fitting(null), top: 5 });
  const forbidden = { getItem() { throw new Error("denied"); }, setItem() { throw new Error("full"); } };
  assert.deepEqual(recall(forbidden, "s/k"), fitting(null));
  assert.equal(remember(forbidden, "s/k", state), false);
});

test("a few pictures load at a time, and those scrolled away are given up", () => {
  const image = () => ({ removeAttribute(name) { delete this[name]; } });
  const thumbs = new Thumbs(2), [a, b, c, d] = [image(), image(), image(), image()];
  [a, b, c, d].forEach((one, i) => thumbs.want(one, `/${i}`));
  assert.deepEqual([a.src, b.src, c.src], ["/0", "/1", undefined]);
  thumbs.drop(c);
  a.onload();
  assert.deepEqual([a.hidden, c.src, d.src], [false, undefined, "/3"]);
  b.onerror();
  assert.equal(b.hidden, true);
  thumbs.drop(d);
  assert.equal(thumbs.loading.size, 0);
});
