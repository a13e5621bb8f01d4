// Registers the pack's browser side: a live loss chart under Train LoRA. The logic is in lib/, pure and tested.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addStep, emptyCurve } from "./lib/curve.mjs";
import { drawCurve } from "./lib/chart.mjs";

const TRAIN = "FluxAtelierTrainLora";
const EVENT = "flux_atelier.step";
const HEIGHT = 140; // pixels
const charts = new Map(); // node id -> {curve, canvas}

/** Draw a node's chart at the size it has on the screen. */
function redraw(chart) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth, clientHeight } = chart.canvas;
  if (!clientWidth || !clientHeight) return;
  chart.canvas.width = clientWidth * scale;
  chart.canvas.height = clientHeight * scale;
  const context = chart.canvas.getContext("2d");
  context.scale(scale, scale);
  drawCurve(context, clientWidth, clientHeight, chart.curve);
}

app.registerExtension({
  name: "FluxAtelier",

  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const chart = charts.get(String(detail.node));
      if (!chart) return;
      chart.curve = addStep(chart.curve, detail);
      redraw(chart);
    });
  },

  nodeCreated(node) {
    if (node.comfyClass !== TRAIN) return;
    const canvas = document.createElement("canvas");
    canvas.style.cssText = "width:100%;height:100%;display:block;border-radius:4px;background:#1d1c1a";
    const widget = node.addDOMWidget("loss chart", "flux_atelier_chart", canvas, {
      serialize: false,
      getMinHeight: () => HEIGHT,
      getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    const chart = { curve: emptyCurve(), canvas };
    new ResizeObserver(() => redraw(chart)).observe(canvas);
    const register = () => charts.set(String(node.id), chart);
    const added = node.onAdded;
    node.onAdded = function (...args) {
      added?.apply(this, args);
      register(); // the id is given when the node joins the graph
    };
    const configured = node.onConfigure;
    node.onConfigure = function (...args) {
      configured?.apply(this, args);
      register();
    };
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      charts.delete(String(node.id));
      removed?.apply(this, args);
    };
    register();
  },
});
