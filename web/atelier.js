// Registers the pack's browser side: the training panel under Train LoRA, and what nodes say. The logic is in lib/, pure and tested.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { BLOCKS_HEIGHT, BLOCKS_STYLE, makeBars } from "./lib/block_widget.mjs";
import { addEvent, catchUp, emptyCurve, fromRun } from "./lib/curve.mjs";
import { isLinked, isNameLinked, isPlainName, nodeAt, runName } from "./lib/graph.mjs";
import { HEIGHT, STYLE } from "./lib/style.mjs";
import { makeTold, toldHeight, wordsOf } from "./lib/told.mjs";
import { makeView } from "./lib/view.mjs";

const OURS = "FluxAtelier";
const TRAIN = "FluxAtelierTrainLora";
const BLOCKS = ["FluxAtelierBlockWeights", "FluxAtelierApplyBlockWeights"]; // nodes whose "weights" are drawn as bars
const EVENT = "flux_atelier.step";
const MARGIN = 20; // pixels that the classic renderer keeps free around a DOM widget
const WIDTH = 400; // pixels of a node nobody has sized yet
const TYPING = 400; // milliseconds after the last key before a name is looked up
const panels = new Map(); // node -> panel

const routeOf = (run) => `/flux_atelier/runs/${encodeURIComponent(run)}`;

function picture(curve, { file, time }) {
  return api.apiURL(`${routeOf(curve.run)}/samples/${encodeURIComponent(file)}?t=${Math.round(time ?? 0)}`);
}

function show(panel, curve) {
  panel.curve = curve;
  panel.view.show(curve);
}

/** Rebuild a panel from its run's folder; events that come meanwhile wait and are added. */
async function load(panel, run) {
  const turn = ++panel.turn; // a later call wins
  if (!isPlainName(run)) {
    panel.waiting = null;
    return show(panel, emptyCurve(run));
  }
  panel.waiting ??= [];
  const answer = await api.fetchApi(routeOf(run)).then((r) => (r.ok ? r.json() : null), () => null);
  if (turn !== panel.turn) return;
  const events = panel.waiting ?? [];
  panel.waiting = null;
  if (answer) show(panel, catchUp(fromRun(answer), events)); // else the server is away: keep what is shown
}

/** Load soon, by the name that stands then: widgets get their values after the node is made. */
function loadSoon(panel, delay = 0) {
  clearTimeout(panel.timer);
  panel.timer = setTimeout(() => load(panel, runName(panel.node)), delay);
}

async function wish(panel, asked) {
  const { run } = panel.curve;
  const answer = await api.fetchApi(`${routeOf(run)}/${asked}`, { method: "POST" });
  if (panel.curve.run !== run) return;
  if (answer.ok) return show(panel, { ...panel.curve, asked: [...panel.curve.asked, asked] });
  const { error } = await answer.json();
  show(panel, { ...panel.curve, running: false, asked: [], trouble: error });
}

function onStep({ detail }) {
  const panel = panels.get(nodeAt(app.rootGraph ?? app.graph, detail.node));
  if (!panel) return;
  // Another workflow may have a node of the same id; its run goes by another name.
  if (detail.run && detail.run !== runName(panel.node) && !isNameLinked(panel.node)) return;
  const another = detail.run && detail.run !== panel.curve.run;
  if (panel.waiting) panel.waiting.push(detail);
  show(panel, addEvent(panel.curve, detail));
  if (another || detail.phase === "done") load(panel, detail.run ?? panel.curve.run);
}

/** A run that ended without a word (cancelled, out of memory) is read again. */
function onEnd() {
  for (const panel of panels.values()) {
    if (panel.curve.running || panel.curve.phase === "encode") load(panel, panel.curve.run || runName(panel.node));
  }
}

/** Do something after each call of a method. */
function after(owner, method, act) {
  const before = owner[method];
  owner[method] = function (...args) {
    const result = before?.apply(this, args);
    act();
    return result;
  };
}

/** Put a panel under a Train LoRA node. */
function addPanel(node) {
  const panel = { node, curve: emptyCurve(), turn: 0, waiting: null, timer: 0 };
  panel.view = makeView(document, { wish: (asked) => wish(panel, asked), picture });
  const widget = node.addDOMWidget("training panel", "flux_atelier_panel", panel.view.element, {
    serialize: false,
    getMinHeight: () => HEIGHT + MARGIN,
  });
  widget.serialize = false;
  panels.set(node, panel);
  show(panel, panel.curve);

  const name = node.widgets.find((w) => w.name === "name");
  if (name) after(name, "callback", () => loadSoon(panel, TYPING));
  after(node, "onConfigure", () => loadSoon(panel));
  after(node, "onRemoved", () => {
    clearTimeout(panel.timer);
    panel.turn++;
    panels.delete(node);
  });
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
  loadSoon(panel);
}

/** Bars for a node's "weights": they read its text and write into it, and hold nothing themselves. */
function addBars(node) {
  const find = (name) => node.widgets.find((w) => w.name === name);
  const text = find("weights");
  const bars = makeBars(document, (words) => {
    text.value = words;
    text.callback?.(words);
    app.canvas?.setDirty(true, true);
  });
  const read = () => bars.show(text.value, find("base")?.value ?? "flux1", isLinked(node, "weights"));
  const widget = node.addDOMWidget("block weights", "flux_atelier_blocks", bars.element, {
    serialize: false,
    getMinHeight: () => BLOCKS_HEIGHT + MARGIN,
  });
  widget.serialize = false;
  for (const w of [text, find("base")]) if (w) after(w, "callback", read);
  for (const method of ["onConfigure", "onConnectionsChange"]) after(node, method, read);
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
  read();
}

/** What a node says when it has run, under its widgets; ComfyUI itself shows such text for its own nodes only. */
function addTold(node) {
  let told = null;
  const before = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    const result = before?.call(this, output, ...rest);
    const words = wordsOf(output);
    if (!words) return result;
    if (!told) {
      told = { element: makeTold(document), height: 0 };
      const widget = node.addDOMWidget("told", "flux_atelier_told", told.element, {
        serialize: false,
        getMinHeight: () => told.height,
      });
      widget.serialize = false;
    }
    told.element.textContent = words;
    told.height = toldHeight(words);
    told.element.style.minHeight = `${told.height}px`;
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    return result;
  };
}

app.registerExtension({
  name: "FluxAtelier",

  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE + BLOCKS_STYLE;
    document.head.append(style);
    api.addEventListener(EVENT, onStep);
    for (const end of ["executed", "execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, onEnd);
    }
    api.addEventListener("reconnected", () => {
      for (const panel of panels.values()) load(panel, panel.curve.run || runName(panel.node));
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === TRAIN) addPanel(node);
    else if (node.comfyClass?.startsWith(OURS)) addTold(node);
    if (BLOCKS.includes(node.comfyClass)) addBars(node);
  },
});
