import assert from "node:assert/strict";
import { test } from "node:test";
import { addEvent, emptyCurve, fromRun } from "../../web/lib/curve.mjs";
import { makeView } from "../../web/lib/view.mjs";

/** As much of an element as the view touches. */
class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, textContent: "", className: "" });
    this.style = { setProperty: (name, value) => (this.attributes[name] = value) };
  }
  append(...inside) {
    for (const child of inside) typeof child === "string" ? (this.textContent = child) : this.children.push(child);
  }
  replaceChildren(...inside) {
    this.children = [];
    this.append(...inside);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  addEventListener(name, act) {
    this.listeners[name] = act;
  }
  all(test) {
    return [...(test(this) ? [this] : []), ...this.children.flatMap((c) => c.all(test))];
  }
}

const document = { createElement: (tag) => new Element(tag), createElementNS: (_, tag) => new Element(tag) };
const asked = [];
const view = () =>
  makeView(document, { wish: (w) => asked.push(w), picture: (c, s) => `/${c.run}/${s.file}?t=${s.time}` });
const find = (shown, text) => shown.element.all((e) => e.textContent === text)[0];
const step = (n, more) => ({ phase: "train", run: "r", step: n, total: 100, loss: 1 / n, ...more });
const running = [1, 2, 3].reduce((c, n) => addEvent(c, step(n, { learning_rate: n })), emptyCurve());

test("the wishes can be pressed only while it runs", () => {
  const shown = view();
  shown.show(emptyCurve());
  const stop = find(shown, "Stop and keep");
  assert.ok(stop.disabled);
  shown.show(running);
  assert.ok(!stop.disabled);
  stop.listeners.click();
  assert.deepEqual(asked, ["stop"]);
  shown.show({ ...running, asked: ["stop"] });
  assert.ok(stop.disabled && stop.textContent === "Stopping");
});

test("a tab changes the lines", () => {
  const shown = view();
  shown.show(running);
  const paths = () => shown.element.all((e) => e.tag === "path").map((e) => e.attributes.class);
  assert.deepEqual(paths(), ["raw", "mean"]);
  find(shown, "rate").listeners.click();
  assert.deepEqual(paths(), ["mean"]);
  find(shown, "noise levels").listeners.click();
  assert.deepEqual(paths(), []);
  assert.ok(find(shown, "nothing measured yet"));
});

test("the newest pictures come first, and one that stays keeps its element", () => {
  const samples = [10, 20].map((n) => ({ step: n, file: `${n}.png`, time: 1 }));
  const curve = fromRun({ name: "r", running: true, total: 100, records: [], notes: [], samples, plan: "a plan" });
  const shown = view();
  shown.show(curve);
  const links = () => shown.element.all((e) => e.tag === "a");
  const before = links();
  assert.deepEqual(before.map((a) => a.href), ["/r/20.png?t=1", "/r/10.png?t=1"]);
  shown.show(addEvent(curve, { phase: "sample", run: "r", step: 30, file: "30.png", time: 2 }));
  assert.deepEqual(links().map((a) => a.href), ["/r/30.png?t=2", "/r/20.png?t=1", "/r/10.png?t=1"]);
  assert.equal(links()[1], before[0]);
  assert.ok(find(shown, "a plan"));
});
