// Entries, newest first, by filters that the address keeps.

import { get } from "./api.js";
import { address, choice, el, field, link, put } from "./dom.js";
import { momentOf, nameOf, noun, show, UNITS } from "./units.js";

const KINDS = [
  "hold", "return", "spend", "overdraft", "limit", "freeze", "unfreeze", "crossing", "carve", "runaway",
  "success", "failure", "operated",
];
const HEAD = ["Time", "Account", "Kind", "Amount", "Model", "Detail", "Reservation"];

/** An input of `datetime-local`, in the watcher's own time, as Unix ms; empty: none. */
const ms = (text) => (text ? `${new Date(text).getTime()}` : "");

export class Entries {
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
    this.note = el("p", { class: "note", hidden: true }, "No entry is like that.");
    const table = el(
      "table", { class: "entries" }, el("caption", { class: "hidden" }, "Entries"),
      el("thead", {}, el("tr", {}, HEAD.map((text) => el("th", { scope: "col", class: text === "Amount" && "number" }, text)))),
      this.body,
    );
    this.table = el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Entries" }, table);
    this.root = el("section", { class: "pane scrolls", "aria-label": "Entries" }, form, this.wrong, this.note, this.table, this.older);
  }

  leave() {}
  update() {}

  search(query) {
    for (const row of this.body.rows) row.hidden = !row.textContent.toLowerCase().includes(query.trim().toLowerCase());
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

  async load(after) {
    const { account, kind, unit, reservation, from, until } = this.inputs;
    const mine = (this.asked = {});
    put(this.wrong, "");
    let page = { entries: [], next: "" };
    try {
      page = await get("/api/entries", {
        account: account.value, kind: kind.value, unit: unit.value, reservation: reservation.value,
        start_ms: ms(from.value), end_ms: ms(until.value), after,
      });
    } catch (error) {
      put(this.wrong, error.message);
    }
    if (this.asked !== mine) return;
    this.next = page.next;
    this.older.hidden = !page.next;
    const rows = page.entries.map(entry);
    if (after) this.body.append(...rows);
    else this.body.replaceChildren(...rows);
    this.note.hidden = this.body.rows.length > 0 || this.wrong.textContent !== "";
    this.table.hidden = this.body.rows.length === 0;
  }
}

function entry(row) {
  const amount = row.kind === "crossing" ? `${row.amount / 10} %` : row.unit ? show(row.unit, row.amount) + noun(row.unit, Number(row.amount)) : "";
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
