// Open reservations, and incidents.

import { bar, el, link, put, Rows, set } from "./dom.js";
import { live, nowMs, tables } from "./store.js";
import { length, momentOf, nameOf, noun, show } from "./units.js";

const SHOWN_AT_MOST = 2_000; // as the sidecar sends
const COLUMNS = [["Account"], ["Model"], ["Debited by"], ["Used"], ["", true], ["Age", true], ["Expires", true]];

/** A search that finds its words anywhere in some texts. */
const finds = (query, ...texts) => texts.some((text) => text?.toLowerCase().includes(query));

export class Reservations {
  query = "";
  keys = [];

  constructor() {
    this.count = el("p", { class: "muted" });
    const head = ([text, isNumber]) => el("span", { role: "columnheader", class: isNumber && "number" }, text || el("span", { class: "hidden" }, "Amount"));
    this.body = el("div", { class: "rows", role: "rowgroup" });
    this.grid = el(
      "div", { class: "grid reservations", role: "table", tabindex: 0, "aria-label": "Open reservations" },
      el("div", { role: "rowgroup", class: "headgroup" }, el("div", { class: "row head", role: "row" }, COLUMNS.map(head))),
      this.body,
    );
    this.empty = el("p", { class: "note", hidden: true });
    this.root = el("section", { class: "pane", "aria-label": "Reservations" }, el("div", { class: "tools" }, this.count), this.empty, this.grid);
    this.rows = new Rows(this.grid, this.body, () => this.make(), (element, at) => this.fill(element, at));
    this.timer = setInterval(() => this.rows.draw(), 1000);
    this.sort();
  }

  leave() {
    clearInterval(this.timer);
    this.rows.close();
  }

  go() {}

  search(query) {
    this.query = query.trim().toLowerCase();
    this.sort();
  }

  update(changed) {
    const keys = changed.get("reservation");
    if (!keys && !changed.has("ready")) return;
    // What was used changes all the time; the order only when one comes or goes.
    for (const key of keys ?? []) {
      if (this.known.has(key) !== tables.reservation.has(key)) return this.sort();
    }
    if (changed.has("ready")) this.sort();
    else this.rows.draw();
  }

  sort() {
    const all = [...tables.reservation];
    this.known = new Set(tables.reservation.keys());
    const wanted = this.query
      ? all.filter(([key, row]) => finds(this.query, key, row.account, row.model, row.by))
      : all;
    wanted.sort(([, one], [, other]) => other.created_ms - one.created_ms);
    this.keys = wanted.map(([key]) => key);
    let open = 0;
    for (const [path, row] of tables.account) if (!tables.account.has(path.slice(0, Math.max(0, path.lastIndexOf("/"))))) open += row.open;
    const leases = all.filter(([, row]) => row.by === "lease").length;
    const more = open > SHOWN_AT_MOST ? ` of ${open.toLocaleString("en")}` : "";
    put(this.count, live.ready ? `${all.length.toLocaleString("en")}${more} open, ${leases.toLocaleString("en")} of them leases` : "Loading…");
    this.empty.hidden = !live.ready || this.keys.length > 0;
    put(this.empty, all.length ? "No reservation has that in its account, model or name." : "No reservation is open.");
    this.grid.hidden = !this.empty.hidden;
    set(this.grid, "aria-rowcount", this.keys.length + 1);
    this.rows.setCount(this.keys.length);
    this.rows.draw();
  }

  make() {
    const cell = (name, ...children) => el("span", { role: "cell", class: name }, children);
    const parts = { account: el("a", {}), bar: bar() };
    const cells = {
      account: cell("name", parts.account), model: cell("model"), by: cell("by"), budget: cell("budget", parts.bar),
      used: cell("spent-of number"), age: cell("age number"), end: cell("end number"),
    };
    const element = el("div", { role: "row", class: "row" }, Object.values(cells));
    return Object.assign(element, { parts, cells });
  }

  fill(element, at) {
    const key = this.keys[at];
    const row = tables.reservation.get(key);
    const second = Math.floor(nowMs() / 1000);
    if (!row || (element.was?.row === row && element.was.second === second && element.was.at === at)) return;
    element.was = { row, second, at };
    const { parts, cells } = element;
    set(element, "aria-rowindex", at + 2);
    put(parts.account, row.account);
    set(parts.account, "title", key);
    set(parts.account, "href", `#/accounts?${new URLSearchParams({ account: row.account })}`);
    put(cells.model, row.model ?? "—");
    put(cells.by, row.by);
    const [unit, granted] = row.granted[0] ?? ["", 0];
    const used = row.used.find(([name]) => name === unit)?.[1] ?? 0;
    const label = unit ? `${show(unit, used)} of ${show(unit, granted)}${noun(unit)}` : "—";
    parts.bar.hidden = !unit;
    parts.bar.fill(used, 0, granted, [], `${label} used`);
    put(cells.used, label);
    const others = row.granted.map(([name, amount]) => `${nameOf(name)}: ${show(name, amount)} granted`);
    set(cells.used, "title", others.join("\n"));
    put(cells.age, length(Math.max(0, nowMs() - row.created_ms)));
    put(cells.end, `in ${length(Math.max(0, row.expires_ms - nowMs()))}`);
  }
}

const CAUSES = { budget: "over its budget", wall_time: "over its time", operator: "by an operator" };
const ENDED = new Set(["reclaimed", "unverified", "reclaim_failed", "unkillable", "cancelled", "observed"]);

export class Incidents {
  query = "";
  items = new Map();

  constructor() {
    this.count = el("p", { class: "muted" });
    this.list = el("div", { class: "incidents" });
    this.root = el("section", { class: "pane scrolls", "aria-label": "Incidents" }, el("div", { class: "tools" }, this.count), this.list);
    this.draw();
  }

  leave() {}
  go() {}

  search(query) {
    this.query = query.trim().toLowerCase();
    this.draw();
  }

  update(changed) {
    if (["incident", "watchdog", "ready"].some((table) => changed.has(table))) this.draw();
  }

  draw() {
    const all = [...tables.incident].sort(([, one], [, other]) => other.created_ms - one.created_ms);
    const found = all.filter(([, one]) => !this.query || finds(this.query, one.account, one.job, one.reason, one.state));
    const elements = found.map(([key, row]) => {
      const known = this.items.get(key);
      if (known?.row === row) return known;
      const item = Object.assign(incident(row), { row });
      item.open = known?.open ?? false;
      this.items.set(key, item);
      return item;
    });
    for (const key of this.items.keys()) if (!tables.incident.has(key)) this.items.delete(key);
    const off = tables.watchdog.get("")?.state === "off" ? tables.watchdog.get("").detail : null;
    put(this.count, !live.ready ? "Loading…" : off ?? (all.length ? `${all.length} incident${all.length === 1 ? "" : "s"}, newest first` : "Nothing was stopped, and nothing would have been."));
    if (elements.length !== this.list.childElementCount || elements.some((element, at) => element !== this.list.children[at])) {
      this.list.replaceChildren(...elements);
    }
  }
}

function incident(row) {
  const word = row.state.replaceAll("_", " ");
  const what = row.unit ? ` ${show(row.unit, row.used)} of ${show(row.unit, row.limit)}` : "";
  const step = (one) => el("li", {}, el("time", {}, momentOf(one.time_ms)), ` ${one.state.replaceAll("_", " ")}: ${one.detail}`);
  const victim = (one) => el("li", {}, `${one.pid} ${one.command}${one.vram ? `, ${show("vram_bytes", one.vram)}` : ""}`);
  return el(
    "details", { class: "card" },
    el(
      "summary", {},
      el("span", { class: `badge ${ENDED.has(row.state) ? "" : "stop"}` }, word),
      el("span", { class: "grow" }, ` ${row.job || "a job"}, ${CAUSES[row.cause] ?? row.cause}${what} `),
      el("time", { class: "muted" }, momentOf(row.created_ms)),
    ),
    el("p", {}, link("accounts", { account: row.account }, row.account), row.reason ? ` — ${row.reason}` : ""),
    el("h2", {}, "Step by step"), el("ol", {}, row.steps.map(step)),
    row.victims.length > 0 && el("h2", {}, "Processes"), el("ul", {}, row.victims.map(victim)),
    row.vram > 0 && el("p", {}, `${show("vram_bytes", row.returned)} of ${show("vram_bytes", row.vram)} came back.`),
  );
}
