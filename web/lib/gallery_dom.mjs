// Elements made in code. Text goes in as text nodes only: captions and paths are written by strangers.

const SVG = "http://www.w3.org/2000/svg";

/**
 * A maker of elements: `on…` are listeners, what an element has as a property is set so, all else is an attribute.
 * @param {Document} document
 * @returns {(tag: string, given?: object, ...inside: (Node | string | null)[]) => HTMLElement}
 */
export function makerOf(document) {
  return (tag, given = {}, ...inside) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (value === undefined || value === null) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name in element) element[name] = value;
      else element.setAttribute(name, String(value));
    }
    element.append(...inside.flat().filter((one) => one !== null && one !== undefined && one !== false));
    return element;
  };
}

/** A drawn shape. */
export function shape(document, tag, attributes = {}, ...inside) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...inside);
  return element;
}
