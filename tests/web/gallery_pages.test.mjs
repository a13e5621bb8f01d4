import assert from "node:assert/strict";
import { test } from "node:test";
import { Pages } from "../../web/lib/gallery_pages.mjs";

/** A server of rows that answers when it is told to. */
function slow(total = 1000) {
  const open = [];
  const read = ({ offset, limit, query }, signal) => new Promise((done, fail) => {
    const rows = Array.from({ length: Math.max(0, Math.min(limit, total - offset)) }, (_, i) => ({ id: `${query.filter ?? ""}${offset + i}`, decision: null }));
    signal.addEventListener("abort", () => fail(new DOMException("stopped", "AbortError")));
    open.push({ offset, signal, query, answer: (given = {}) => done({ total, rows, ...given }), fail });
  });
  return { open, read };
}
const calm = () => new Promise((done) => setTimeout(done, 0));
function made(server, options = {}) {
  const told = { changed: 0, shifted: [], failed: [] };
  const pages = new Pages(server.read, {
    changed: () => told.changed++, shifted: (...shift) => told.shifted.push(shift), failed: (error) => told.failed.push(error),
  }, { size: 10, ...options });
  return { pages, told };
}
const has = (id) => (row) => row.id === id;
const keep = (row) => ({ ...row, decision: "keep" });

test("a page is asked for once, and shown when it comes", async () => {
  const server = slow(), { pages, told } = made(server);
  pages.open({});
  pages.want(12, 19);
  pages.want(12, 19);
  assert.deepEqual(server.open.map((one) => one.offset), [10]);
  assert.equal(pages.row(12), undefined);
  server.open[0].answer();
  await calm();
  assert.deepEqual([pages.row(12).id, pages.total, told.changed], ["12", 1000, 1]);
  assert.deepEqual([pages.find("12"), pages.find("99")], [12, -1]);
});

test("a page that nobody looks at any more is given up", async () => {
  const server = slow(), { pages, told } = made(server);
  pages.open({});
  pages.want(0, 10);
  pages.want(500, 510);
  assert.equal(server.open[0].signal.aborted, true);
  await calm();
  assert.deepEqual(told.failed, []);
  pages.want(0, 10);
  assert.equal(server.open.length, 3); // and asked for again
});

test("the answer to an earlier filter is thrown away, whenever it comes", async () => {
  const server = slow(), { pages } = made(server);
  pages.open({ filter: "a" });
  pages.want(0, 1);
  pages.open({ filter: "b" });
  pages.want(0, 1);
  server.open[1].answer();
  await calm();
  server.open[0].answer({ total: 3 });
  await calm();
  assert.deepEqual([pages.row(0).id, pages.total], ["b0", 1000]);
});

test("what was shown stays until another filter's rows are there", async () => {
  const server = slow(), { pages } = made(server);
  pages.open({ filter: "a" });
  pages.want(0, 1);
  server.open[0].answer();
  await calm();
  pages.open({ filter: "b" });
  pages.want(0, 1);
  assert.equal(pages.row(0).id, "a0");
  server.open[1].fail(new Error("not known"));
  await calm();
  assert.equal(pages.row(0).id, "a0");
});

test("only the last used pages are kept", async () => {
  const server = slow(), { pages } = made(server, { most: 2 });
  pages.open({});
  for (const at of [0, 10, 0, 20]) {
    pages.want(at, at + 1);
    server.open.at(-1).answer();
    await calm();
  }
  assert.deepEqual([...pages.pages.keys()], [0, 2]);
});

test("a change shows at once, and goes when it is refused", async () => {
  const server = slow(), { pages } = made(server);
  pages.open({});
  pages.want(0, 1);
  server.open[0].answer();
  await calm();
  const edit = pages.lay(has("3"), keep);
  assert.deepEqual([pages.row(3).decision, pages.row(4).decision], ["keep", null]);
  pages.settle(edit, false);
  assert.equal(pages.row(3).decision, null);
});

test("a later change that is refused leaves the earlier one", async () => {
  const server = slow(), { pages } = made(server);
  pages.open({});
  pages.want(0, 1);
  server.open[0].answer();
  await calm();
  const first = pages.lay(has("3"), keep), second = pages.lay(has("3"), (row) => ({ ...row, decision: "reject" }));
  pages.settle(first, true);
  assert.equal(pages.row(3).decision, "reject");
  pages.settle(second, false);
  assert.equal(pages.row(3).decision, "keep");
});

test("a page that was read before the change and comes after it does not take it back", async () => {
  const server = slow(), { pages } = made(server);
  pages.open({});
  pages.want(0, 1);
  const edit = pages.lay(has("3"), keep);
  pages.settle(edit, true);
  server.open[0].answer();
  await calm();
  assert.equal(pages.row(3).decision, "keep");
  pages.refresh();
  pages.want(0, 1);
  server.open[1].answer(); // read after it: the server knows best
  await calm();
  assert.equal(pages.row(3).decision, null);
});

test("another total means that rows have moved: it is told, and all else is read again", async () => {
  const server = slow(), { pages, told } = made(server);
  pages.open({});
  pages.want(0, 20);
  server.open[0].answer();
  server.open[1].answer();
  await calm();
  pages.want(20, 21);
  server.open[2].answer({ total: 990 });
  await calm();
  assert.deepEqual(told.shifted, [[1000, 990]]);
  assert.equal(pages.find("5"), -1); // where it was is not where it is
  assert.equal(pages.row(5).id, "5"); // but something stands there meanwhile
  pages.want(0, 10);
  assert.equal(server.open.at(-1).offset, 0);
});

test("a failure is told, and the page may be asked for again", async () => {
  const server = slow(), { pages, told } = made(server);
  pages.open({});
  pages.want(0, 1);
  server.open[0].fail(new Error("away"));
  await calm();
  assert.equal(told.failed[0].message, "away");
  pages.want(0, 1);
  assert.equal(server.open.length, 2);
});

test("ids of a stretch come from what is known and what is read", async () => {
  const server = slow(35), { pages } = made(server);
  pages.open({});
  pages.want(0, 1);
  server.open[0].answer();
  await calm();
  const asking = pages.ids(8, 32);
  for (let i = 1; i <= 3; i++) {
    await calm();
    server.open[i].answer();
  }
  const expected = Array.from({ length: 24 }, (_, i) => String(i + 8));
  assert.deepEqual(await asking, expected);
});
