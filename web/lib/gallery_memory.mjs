// What the gallery remembers of a view over a reload: only what the browser holds, for as long as its tab is open.

const PREFIX = "flux_atelier.gallery.";
const MOST = 2000; // ids of a selection

const START = Object.freeze({ filter: "", order: "path", tab: "all", size: 140, top: 0, focus: 0, anchor: 0, ids: [], all: false });
const FITS = {
  filter: (v) => typeof v === "string", order: (v) => typeof v === "string",
  tab: (v) => ["all", "left_out", "groups"].includes(v), size: (v) => v >= 80 && v <= 400,
  top: (v) => v >= 0, focus: (v) => Number.isInteger(v) && v >= 0, anchor: (v) => Number.isInteger(v) && v >= 0,
  ids: (v) => Array.isArray(v) && v.every((one) => typeof one === "string"), all: (v) => typeof v === "boolean",
};

/** What fits of a remembered state, and the start's values for the rest. */
export function fitting(found) {
  const given = found && typeof found === "object" ? found : {};
  return Object.fromEntries(Object.entries(START).map(([name, start]) => [name, FITS[name](given[name]) ? given[name] : start]));
}

/**
 * @param {Storage} storage
 * @param {string} view store/key
 * @param {object} [before] the state to go on with where there is none for this view
 */
export function recall(storage, view, before) {
  let found = null;
  try {
    found = JSON.parse(storage.getItem(PREFIX + view));
  } catch {
    found = null; // not ours, or storage is forbidden: begin anew
  }
  return fitting(found ?? before);
}

export function remember(storage, view, state) {
  const kept = { ...fitting(state), ids: state.ids.length > MOST ? [] : state.ids };
  try {
    storage.setItem(PREFIX + view, JSON.stringify(kept));
  } catch {
    return false; // full or forbidden: the gallery works without a memory
  }
  return true;
}
