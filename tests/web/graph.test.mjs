import assert from "node:assert/strict";
import { test } from "node:test";
import { isNameLinked, isPlainName, nodeAt, runName } from "../../web/lib/graph.mjs";

const graphOf = (nodes) => ({ getNodeById: (id) => nodes[id] });

test("a node is found by its execution id, also inside a subgraph", () => {
  const inner = { id: 6, title: "inner" }, outer = { id: 6, title: "outer" };
  const graph = graphOf({ 6: outer, 12: { id: 12, subgraph: graphOf({ 6: inner }) } });
  assert.equal(nodeAt(graph, "6"), outer);
  assert.equal(nodeAt(graph, 6), outer);
  assert.equal(nodeAt(graph, "12:6"), inner);
  for (const missing of ["7", "6:1", "12:7", "13:6"]) assert.ok(!nodeAt(graph, missing));
});

test("the name is the widget's, trimmed, unless it comes over a wire", () => {
  const node = { widgets: [{ name: "name", value: " mia " }], inputs: [{ widget: { name: "name" }, link: null }] };
  assert.equal(runName(node), "mia");
  assert.equal(runName({}), "");
  assert.ok(!isNameLinked(node));
  assert.ok(isNameLinked({ inputs: [{ widget: { name: "name" }, link: 3 }] }));
});

test("names that lead elsewhere are not asked for", () => {
  for (const name of ["mia", "series/mia", "a..b", "v1.5"]) assert.ok(isPlainName(name), name);
  for (const name of ["", ".", "..", "../mia", "a/../b", "/etc"]) assert.ok(!isPlainName(name), name);
});
