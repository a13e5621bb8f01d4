// Registers the panels of Compare Pictures and Compare Videos. The logic is in lib/, pure and tested.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { makePictures } from "./lib/compare_pictures.mjs";
import { COMPARE_HEIGHT, COMPARE_STYLE } from "./lib/compare_style.mjs";
import { makeVideos } from "./lib/compare_videos.mjs";

const given = { address: (path) => api.apiURL(path), soon: (act) => requestAnimationFrame(act) };
const PANELS = {
  FluxAtelierComparePictures: { make: makePictures, height: COMPARE_HEIGHT.pictures, width: 420 },
  FluxAtelierCompareVideos: { make: makeVideos, height: COMPARE_HEIGHT.videos, width: 560 },
};
const MARGIN = 20; // pixels that the classic renderer keeps free around a DOM widget

const AGAIN = 150, TRIES = 14; // milliseconds between looks for a result that comes back, and how many

/** Where ComfyUI keeps a node's last result. */
const keyOf = (node) => (node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : String(node.id));

/** Put a panel under a node; it shows what the node's last run gave, and lets go of it with the node. */
function addPanel(node, { make, height, width }) {
  const panel = make(document, given);
  const widget = node.addDOMWidget("comparison", "flux_atelier_compare", panel.element, {
    serialize: false,
    getMinHeight: () => height + MARGIN,
  });
  widget.serialize = false;
  let timer = 0;
  /** Back in a workflow that was left, ComfyUI has its results again, but only a moment after the nodes. */
  function recall(tries) {
    const output = app.nodeOutputs?.[keyOf(node)];
    if (output) panel.show(output);
    else if (tries) timer = setTimeout(recall, AGAIN, tries - 1);
  }
  const { onConfigure, onExecuted, onRemoved } = node;
  node.onConfigure = function (...args) {
    const result = onConfigure?.apply(this, args);
    clearTimeout(timer);
    timer = setTimeout(recall, AGAIN, TRIES);
    return result;
  };
  node.onExecuted = function (output, ...rest) {
    const result = onExecuted?.call(this, output, ...rest);
    clearTimeout(timer);
    panel.show(output);
    return result;
  };
  node.onRemoved = function (...args) {
    clearTimeout(timer);
    panel.close();
    return onRemoved?.apply(this, args);
  };
  node.setSize([Math.max(node.size[0], width), node.computeSize()[1]]);
}

app.registerExtension({
  name: "FluxAtelier.Compare",

  setup() {
    const style = document.createElement("style");
    style.textContent = COMPARE_STYLE;
    document.head.append(style);
  },

  nodeCreated(node) {
    const kind = PANELS[node.comfyClass];
    if (kind) addPanel(node, kind);
  },
});
