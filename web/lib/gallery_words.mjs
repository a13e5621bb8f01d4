// What the gallery says, in words; and how changes look before the server has answered.

const number = new Intl.NumberFormat("en");

export const counted = (n) => number.format(n);
export const many = (n, one = "picture") => `${number.format(n)} ${one}${n === 1 ? "" : "s"}`;
export const nameOf = (row) => String(row.path ?? row.id).split("/").pop();
const DONE = { keep: "Kept", reject: "Rejected" };

/** What a decision did: "Kept 3 pictures." */
export function decided(decision, n, row) {
  const what = n === 1 && row ? nameOf(row) : many(n);
  return decision ? `${DONE[decision]} ${what}.` : `Took the decision on ${what} back.`;
}

export function starred(stars, n, row) {
  const what = n === 1 && row ? nameOf(row) : many(n);
  return stars ? `Gave ${what} ${many(stars, "star")}.` : `Took the stars of ${what} away.`;
}

/** What an undo did; the server names what it took back. */
export const undone = ({ undone: label }) => (label ? `Undone: ${label}.` : "There is nothing to undo.");

/** Counts as one line: "kept 3, rejected 2, undecided 5". */
export function countsLine(counts) {
  const { keep = 0, reject = 0, undecided = 0 } = counts ?? {};
  return [`kept ${number.format(keep)}`, `rejected ${number.format(reject)}`, `undecided ${number.format(undecided)}`];
}

/** Counts after some rows were decided otherwise. */
export function recounted(counts, rows, decision) {
  const next = { keep: 0, reject: 0, undecided: 0, ...counts };
  for (const row of rows) {
    next[row.decision ?? "undecided"]--;
    next[decision ?? "undecided"]++;
  }
  return next;
}

export const stars = (n) => "★".repeat(Math.max(0, Math.min(5, n ?? 0)));
export const isLocked = (row) => (row.captions ?? []).some((caption) => caption.author === "human");
export const writerOf = (caption) => (caption.author === "human" ? "written by a person" : caption.model || caption.author || "unknown");

/** The second line of a cell: what was decided, and what else there is to say. */
export const verdictOf = (row) => (DONE[row.decision] ?? "").toLowerCase();
export const noteOf = (row) => [stars(row.stars), row.left_out?.reason].filter(Boolean).join("  ");

/** All of a cell in one sentence, for those who listen. */
export function sentenceOf(row) {
  const said = [row.path, row.left_out ? `left out: ${row.left_out.reason}` : row.decision ?? "undecided"];
  if (row.stars) said.push(many(row.stars, "star"));
  if (isLocked(row)) said.push("caption by a person");
  return said.join(", ");
}

/** The caption that an editor begins with: a person's own, else the first. */
export function draftOf(row) {
  const captions = row.captions ?? [];
  return (captions.find((one) => one.author === "human") ?? captions[0])?.text ?? "";
}

/** All texts of a person after the first was edited; an empty one is taken away. */
export function textsOf(row, edited) {
  const others = (row.captions ?? []).filter((one) => one.author === "human").slice(1).map((one) => one.text);
  return [edited.trim(), ...others].filter(Boolean);
}

/** A row with the captions that its texts will make. */
export function withTexts(row, texts) {
  const models = (row.captions ?? []).filter((one) => one.author !== "human");
  return { ...row, captions: [...texts.map((text) => ({ text, author: "human", model: "" })), ...models] };
}

/** Facts of a row as pairs, in the order of the detail. */
export function factsOf(row) {
  const crop = row.crop ? `${row.crop[2]} × ${row.crop[3]} at ${row.crop[0]}, ${row.crop[1]}` : "";
  const facts = [
    ["Size", row.width ? `${row.width} × ${row.height}` : ""], ["Decision", row.decision ?? "undecided"], ["Stars", stars(row.stars)],
    ["Reason", row.reason ?? ""], ["Decided by", row.by ?? ""], ["Split", row.split ?? ""],
    ["Repeats", row.repeats > 1 ? String(row.repeats) : ""], ["Crop", crop], ["Tags", (row.tags ?? []).join(", ")],
    ["Left out", row.left_out ? `${row.left_out.reason}, by ${row.left_out.by}` : ""], ["Notes", (row.notes ?? []).join("; ")],
  ];
  const scores = Object.entries(row.scores ?? {}).filter(([, value]) => typeof value === "number");
  return [...facts.filter(([, value]) => value), ...scores.map(([name, value]) => [name, String(Number(value.toPrecision(3)))])];
}

/** How far a similar picture is. */
export const nearness = (row) => (row.distance === 0 ? "same" : many(row.distance ?? 0, "bit"));

/** Why the pictures of a group belong together, for one of them. */
export function whyOf(group, id) {
  const names = new Map(group.rows.map((row) => [row.id, nameOf(row)]));
  const said = (group.why ?? []).filter(([a, b]) => a === id || b === id);
  return said.map(([a, b, why]) => `${why} (${names.get(a === id ? b : a) ?? "another"})`);
}
