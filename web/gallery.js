// Registers the gallery: under Review Dataset, and over the whole window. The logic is in lib/, pure and tested.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isViewName } from "./lib/gallery_client.mjs";
import { makeGallery } from "./lib/gallery_element.mjs";
import { GALLERY_HEIGHT, GALLERY_STYLE } from "./lib/gallery_style.mjs";

const REVIEW = "FluxAtelierReviewDataset";
const SHOWN = "flux_atelier_view"; // the node's property that holds store/key, so that a workflow opens where it was left
const MARGIN = 20; // pixels that the classic renderer keeps free around a DOM widget
const WIDTH = 640; // pixels of a node nobody has sized yet
const server = { ask: (path, options) => api.fetchApi(path, options), address: (path) => api.apiURL(path) };
const galleries = new Set();

/** The gallery moves into a dialog over the window, and back under its node. */
function makeFull(gallery, home) {
  let dialog = null;
  function close() {
    if (!dialog) return;
    home.append(gallery.element);
    dialog.remove();
    dialog = null;
    gallery.moved(false);
  }
  function open() {
    dialog = document.createElement("dialog");
    dialog.className = "flux-atelier-dialog";
    dialog.setAttribute("aria-label", "Review Dataset");
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // Escape goes through the gallery's own steps
    dialog.addEventListener("close", close);
    document.body.append(dialog);
    dialog.append(gallery.element);
    dialog.showModal();
    gallery.moved(true);
  }
  return { toggle: () => (dialog ? close() : open()), close };
}

/** Put a gallery under a Review Dataset node. */
function addGallery(node) {
  const home = document.createElement("div");
  home.style.cssText = `width: 100%; height: 100%; min-height: ${GALLERY_HEIGHT}px`;
  const gallery = makeGallery(document, { server, storage: window.sessionStorage, full: () => full.toggle() });
  const full = makeFull(gallery, home);
  home.append(gallery.element);
  galleries.add(gallery);
  const widget = node.addDOMWidget("gallery", "flux_atelier_gallery", home, {
    serialize: false,
    getMinHeight: () => GALLERY_HEIGHT + MARGIN,
  });
  widget.serialize = false;

  const show = (name) => {
    if (!isViewName(name)) return;
    node.properties[SHOWN] = name;
    gallery.open(name);
  };
  const { onExecuted, onConfigure, onRemoved } = node;
  node.onExecuted = function (output, ...rest) {
    const result = onExecuted?.call(this, output, ...rest);
    const name = [output?.atelier_view].flat()[0], isNew = isViewName(name) && name !== node.properties[SHOWN];
    if (isNew) app.canvas?.emitBeforeChange?.(); // ComfyUI keeps a workflow for a reload only where it hears that it has changed
    show(name);
    if (isNew) app.canvas?.emitAfterChange?.();
    return result;
  };
  node.onConfigure = function (...args) {
    const result = onConfigure?.apply(this, args);
    show(node.properties?.[SHOWN]);
    return result;
  };
  node.onRemoved = function (...args) {
    full.close();
    gallery.destroy();
    galleries.delete(gallery);
    return onRemoved?.apply(this, args);
  };
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
}

app.registerExtension({
  name: "FluxAtelier.Gallery",

  setup() {
    const style = document.createElement("style");
    style.textContent = GALLERY_STYLE;
    document.head.append(style);
    window.addEventListener("pagehide", () => galleries.forEach((gallery) => gallery.keep()));
    api.addEventListener("reconnected", () => galleries.forEach((gallery) => gallery.again()));
  },

  nodeCreated(node) {
    if (node.comfyClass === REVIEW) addGallery(node);
  },
});
