// The gallery's words with the server. Every refusal becomes one sentence that can be shown.

const AWAY = "The server does not answer. Nothing was changed; try again when it is back.";

/** What went wrong, as a sentence. `status` is the answer's, 0 where there was none. */
export class Trouble extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

async function answerOf(asking) {
  let answer;
  try {
    answer = await asking;
  } catch (error) {
    if (error?.name === "AbortError") throw error;
    throw new Trouble(AWAY);
  }
  const said = await answer.json().catch((error) => {
    if (error?.name === "AbortError") throw error;
    return null;
  });
  if (answer.ok && said) return said;
  throw new Trouble(said?.error ?? `The server answered ${answer.status}. Its log says more.`, answer.status);
}

/** Whether a text is a view's name: a store's folder and sixteen hex digits. */
export function isViewName(name) {
  return typeof name === "string" && /^[^/\\]+\/[0-9a-f]{16}$/.test(name) && !name.startsWith(".");
}

/**
 * @param {{ask: (path: string, options?: object) => Promise<Response>, address: (path: string) => string}} server
 * @param {string} name of the view: store/key
 */
export function makeClient({ ask, address }, name) {
  const [store, key] = name.split("/").map(encodeURIComponent), one = encodeURIComponent;
  const home = `/flux_atelier/datasets/${store}`, view = `${home}/views/${key}`;
  const get = (path, signal) => answerOf(ask(path, signal ? { signal } : undefined));
  const post = (path, said) => answerOf(ask(path, {
    method: "POST", body: JSON.stringify(said), headers: { "Content-Type": "application/json" },
  }));
  const words = (given) => new URLSearchParams(given).toString();
  return {
    name,
    view: () => get(view),
    rows: ({ offset, limit, query: { filter = "", order = "path", group = "all" } }, signal) =>
      get(`${view}/rows?${words({ offset, limit, filter, order: order || "path", group })}`, signal),
    decide: (which, decision, reason) => post(`${view}/decide`, { ...which, decision, ...(reason ? { reason } : {}) }),
    stars: (which, stars) => post(`${view}/stars`, { ...which, stars }),
    caption: (id, texts) => post(`${view}/caption`, { id, texts }),
    undo: () => post(`${home}/undo`, {}),
    similar: (id, signal) => get(`${view}/similar/${one(id)}?n=12`, signal),
    groups: (offset, limit, signal) => get(`${view}/groups?${words({ offset, limit })}`, signal),
    thumb: (row) => address(`${home}/thumbs/${one(row.id)}?${words({ v: row.digest ?? "" })}`),
    picture: (row, done) =>
      address(`${home}/pictures/${one(row.id)}?${words({ side: 1600, view: key, ...(done ? { done: 1 } : {}), v: row.digest ?? "" })}`),
  };
}

/**
 * Writes go one after another, in the order of the keys: a later decision must not be overtaken by an earlier one.
 * @returns {(write: () => Promise<object>) => Promise<object>}
 */
export function inTurn() {
  let last = Promise.resolve();
  return (write) => {
    const mine = last.then(write);
    last = mine.catch(() => {}); // its own caller hears of it
    return mine;
  };
}
