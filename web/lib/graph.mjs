// Where things are in ComfyUI's graph.

/**
 * The node that an execution id names: "6", or "12:6" for node 6 of the subgraph inside node 12.
 * @param {{getNodeById: (id: string) => any}} graph the root graph
 * @param {string|number} path
 */
export function nodeAt(graph, path) {
  return String(path).split(":").reduce(
    ({ graph }, id) => {
      const node = graph?.getNodeById(id) ?? null;
      return { node, graph: node?.subgraph };
    },
    { graph, node: null },
  ).node;
}

/** What a node's "name" widget says. */
export function runName(node) {
  return String(node.widgets?.find((w) => w.name === "name")?.value ?? "").trim();
}

/** Whether a widget's value comes over a wire, so that what it shows does not count. */
export function isLinked(node, widget) {
  return Boolean(node.inputs?.some((i) => i.widget?.name === widget && i.link != null));
}

/** Whether the name comes over a wire, so that the widget's own value does not count. */
export function isNameLinked(node) {
  return isLinked(node, "name");
}

/** Whether a name can be a run's; the server says no to the others, which the console would show as an error. */
export function isPlainName(name) {
  return Boolean(name) && !/(^|[\\/])\.{1,2}([\\/]|$)/.test(name) && !/^[\\/]/.test(name);
}
