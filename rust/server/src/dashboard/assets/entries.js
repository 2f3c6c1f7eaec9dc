// Entries, newest first, by filters that the address keeps.

import { get } from "./api.js";
import { address, choice, el, field, filter, link, put } from "./dom.js";
import { Again, live } from "./store.js";
import { momentOf, nameOf, noun, show, UNITS } from "./units.js";

const KINDS = [
  "hold", "return", "spend", "overdraft", "limit", "freeze", "unfreeze", "crossing", "carve", "runaway",
  "success", "failure", "operated",
];
const HEAD = ["Time", "Account", "Kind", "Amount", "Model", "Detail", "Reservation"];

const LOOK_MS = 5000;

/** An input of `datetime-local`, in the watcher's own time, as Unix ms; empty: none. */
const ms = (text) => (text ? `${new Date(text).getTime()}` : "");

export class Entries {
  query = "";
  next = "";
  newest = null; // the sequence of the first entry that is shown

  constructor() {
    this.inputs = {
      account: el("input", { autocomplete: "off", spellcheck: "false", placeholder: "all" }),
      kind: choice([["", "all"], ...KINDS.map((kind) => [kind, kind])], ""),
      unit: choice([["", "all"], ...Object.keys(UNITS).map((unit) => [unit, nameOf(unit)])], ""),
      reservation: el("input", { autocomplete: "off", spellcheck: "false", placeholder: "all" }),
      from: el("input", { type: "datetime-local" }),
      until: el("input", { type: "datetime-local" }),
    };
    const labels = ["Account", "Kind", "Unit", "Reservation", "From", "Until"];
    const fields = Object.values(this.inputs).map((input, at) => field(labels[at], input));
    const form = el(
      "form", { class: "filters", onsubmit: (event) => this.submit(event) }, fields,
      el("button", { type: "submit", class: "main" }, "Show"),
    );
    this.body = el("tbody", {});
    this.wrong = el("p", { class: "wrong", role: "alert" });
    this.older = el("button", { type: "button", hidden: true, onclick: () => this.load(this.next) }, "Older");
    this.newer = el("button", { type: "button", hidden: true, onclick: () => this.begin() });
    this.found = el("p", { class: "muted", role: "status" });
    this.note = el("p", { class: "note", hidden: true }, "No entry is like that.");
    const table = el(
      "table", { class: "entries" }, el("caption", { class: "hidden" }, "Entries"),
      el("thead", {}, el("tr", {}, HEAD.map((text) => el("th", { scope: "col", class: text === "Amount" && "number" }, text)))),
      this.body,
    );
    this.table = el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Table of entries" }, table);
    this.root = el("section", { class: "pane scrolls", "aria-label": "Entries" }, form, this.wrong, this.newer, this.found, this.note, this.table, this.older);
    this.again = new Again(LOOK_MS, () => this.look());
  }

  leave() {
    this.again.leave();
  }

  update(changed) {
    const isBack = changed.has("state") && live.state === "live";
    if (isBack && this.wrong.textContent && !this.body.rows.length) this.load("");
  }

  search(query) {
    this.query = query;
    const shown = filter(this.body.rows, query);
    const older = this.next ? " “Older” loads more of them." : "";
    put(this.found, query.trim() ? `${shown} of the ${this.body.rows.length} entries that are loaded have that in them.${older}` : "");
  }

  go(params) {
    for (const [name, input] of Object.entries(this.inputs)) input.value = params[name] ?? "";
    this.load("");
  }

  submit(event) {
    event.preventDefault();
    const values = Object.entries(this.inputs).map(([name, input]) => [name, input.value.trim()]);
    const to = address("entries", Object.fromEntries(values));
    if (location.hash === to) this.load("");
    else location.hash = to;
  }

  /** Takes over what is chosen. */
  choose() {
    const { account, kind, unit, reservation, from, until } = this.inputs;
    if (from.value && until.value && from.value >= until.value) throw new Error("From has to be before Until.");
    this.chosen = {
      account: account.value, kind: kind.value, unit: unit.value, reservation: reservation.value,
      start_ms: ms(from.value), end_ms: ms(until.value),
    };
  }

  async load(after) {
    const mine = (this.asked = {});
    put(this.wrong, "");
    try {
      if (!after) this.choose();
      const page = await get("/api/entries", { ...this.chosen, after });
      if (this.asked !== mine) return;
      this.take(page, after);
    } catch (error) {
      if (this.asked !== mine) return;
      put(this.wrong, error.message);
      if (!after) this.take({ entries: [], next: "" }, "");
    }
  }

  take({ entries, next }, after) {
    this.next = next;
    this.older.hidden = !next;
    const rows = entries.map(entry);
    if (after) this.body.append(...rows);
    else {
      this.body.replaceChildren(...rows);
      this.newest = entries[0]?.sequence ?? null;
      this.newer.hidden = true;
    }
    this.note.hidden = this.body.rows.length > 0 || this.wrong.textContent !== "";
    this.table.hidden = this.body.rows.length === 0;
    this.search(this.query);
  }

  /** Says how many entries are newer than those that are shown, which stay where they are. */
  async look() {
    if (this.wrong.textContent) return;
    const mine = this.asked;
    const { entries } = await get("/api/entries", { ...this.chosen, after: "" });
    if (this.asked !== mine) return;
    const known = entries.findIndex(({ sequence }) => sequence === this.newest);
    const count = known < 0 ? `${entries.length}${this.newest ? " or more" : ""}` : `${known}`;
    this.newer.hidden = known === 0 || !entries.length;
    put(this.newer, `Show ${count} new ${count === "1" ? "entry" : "entries"}`);
  }

  begin() {
    this.root.scrollTop = 0;
    this.table.focus({ preventScroll: true });
    this.load("");
  }
}

function entry(row) {
  const amount = row.kind === "crossing" ? `${row.amount / 10} % of ${nameOf(row.unit)}` : row.unit ? show(row.unit, row.amount) + noun(row.unit, Number(row.amount)) : "";
  return el(
    "tr", {},
    el("td", { class: "time" }, momentOf(row.time_ms)),
    el("td", {}, row.account ? link("accounts", { account: row.account }, row.account) : "—"),
    el("td", {}, row.kind),
    el("td", { class: "number", title: row.unit ? `${row.amount} ${row.unit}` : null }, amount),
    el("td", {}, row.model),
    el("td", { class: "detail-text" }, row.detail),
    el("td", {}, row.reservation && link("entries", { reservation: row.reservation }, row.reservation)),
  );
}
