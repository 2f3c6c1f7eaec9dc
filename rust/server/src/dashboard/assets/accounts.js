// The tree of accounts: a grid of which only the rows in sight exist.

import { address, bar, choice, el, put, Rows, set } from "./dom.js";
import { Detail } from "./detail.js";
import { barLabel, forecast, standing, stateOf, STATES } from "./budget.js";
import { live, nowMs, tables } from "./store.js";
import { brief, nameOf, noun, per, speed, UNITS } from "./units.js";

const OPEN_AT_FIRST = 200; // with more accounts than this only the roots are open
const names = new Intl.Collator("en", { numeric: true });
const before = (one, other) => names.compare(one.name, other.name) || (one.path < other.path ? -1 : 1);

/** The states that are an account's own, the worst first: what is frozen above is told there. */
const TROUBLES = STATES.map((_, at) => at).filter((at) => at && STATES[at] !== "frozen above").reverse();
const OWN_TROUBLE = new Set(TROUBLES);

/** How many are in which state: "1 frozen, 2 over". */
const told = (counts) =>
  TROUBLES.filter((at) => counts[at]).map((at) => `${counts[at].toLocaleString("en")} ${STATES[at]}`).join(", ");

const use = ([, , limit, held, spent]) => (limit > 0 ? (spent + held) / limit : Infinity);

/** The budget to show of an account: of a unit, or the one with the least left in proportion. */
function budgetOf(row, unit) {
  let found = null;
  for (const budget of row?.budgets ?? []) {
    if ((!unit || budget[0] === unit) && (!found || use(budget) > use(found))) found = budget;
  }
  return found;
}

class Tree {
  roots = [];
  nodes = new Map();
  isDirty = true;
  query = "";
  wantsTrouble = false;
  trouble = new Array(STATES.length).fill(0); // how many accounts are in each state

  add(path) {
    let node = this.nodes.get(path);
    if (node) return node;
    const slash = path.lastIndexOf("/");
    const parent = slash > 0 ? path.slice(0, slash) : null;
    // Who is bound to an account sees nothing above it: what has no parent is a root.
    const above = parent !== null && (tables.account.has(parent) ? this.add(parent) : this.nodes.get(parent));
    node = { path, parent: above || null, children: [], isOpen: null, state: 0, below: [] };
    node.name = above ? path.slice(slash + 1) : path;
    node.level = above ? above.level + 1 : 1;
    const siblings = above ? above.children : this.roots;
    let [low, high] = [0, siblings.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (before(siblings[middle], node) < 0) low = middle + 1;
      else high = middle;
    }
    siblings.splice(low, 0, node);
    this.nodes.set(path, node);
    this.isDirty = true;
    return node;
  }

  remove(path) {
    const node = this.nodes.get(path);
    if (!node) return;
    for (const child of [...node.children]) this.remove(child.path);
    this.judge(node, 0);
    const siblings = node.parent ? node.parent.children : this.roots;
    siblings.splice(siblings.indexOf(node), 1);
    this.nodes.delete(path);
    this.isDirty = true;
  }

  /** Notes how an account stands, at all that are above it. */
  judge(node, state) {
    const was = node.state;
    if (was === state) return;
    node.state = state;
    this.isDirty ||= this.wantsTrouble;
    const counted = [this.trouble];
    for (let up = node.parent; up; up = up.parent) counted.push(up.below);
    for (const counts of counted) {
      counts[was] = (counts[was] ?? 0) - 1;
      counts[state] = (counts[state] ?? 0) + 1;
    }
  }

  get isFiltered() {
    return this.query !== "" || this.wantsTrouble;
  }

  isOpen(node) {
    if (this.isFiltered) return true;
    return node.isOpen ?? (node.level === 1 || this.nodes.size <= OPEN_AT_FIRST);
  }

  /** The nodes that are shown, in order. */
  flat() {
    if (!this.isDirty) return this.shown;
    this.isDirty = false;
    const wanted = this.isFiltered ? this.matches() : null;
    this.shown = [];
    const walk = (nodes) => {
      for (const node of nodes) {
        if (wanted && !wanted.has(node)) continue;
        this.shown.push(node);
        if (node.children.length && this.isOpen(node)) walk(node.children);
      }
    };
    walk(this.roots);
    this.at = new Map(this.shown.map((node, index) => [node, index]));
    return this.shown;
  }

  /** The nodes that are looked for, and those above them. */
  matches() {
    const wanted = new Set();
    for (const node of this.nodes.values()) {
      if (this.wantsTrouble && !OWN_TROUBLE.has(node.state)) continue;
      if (!node.path.toLowerCase().includes(this.query)) continue;
      for (let up = node; up && !wanted.has(up); up = up.parent) wanted.add(up);
    }
    return wanted;
  }
}

const COLUMNS = [["Account"], ["Budget"], ["Used", true], ["Left", true], ["Rate", true], ["Forecast", true]];

export class Accounts {
  tree = new Tree();
  unit = "";
  active = null; // the node that the keyboard is on

  constructor({ user }) {
    const units = [["", "Fullest budget"], ...Object.keys(UNITS).map((unit) => [unit, nameOf(unit)])];
    const pick = choice(units, "", { onchange: () => this.pick(pick.value) });
    this.count = el("p", { class: "muted" });
    this.trouble = el("button", { type: "button", "aria-pressed": "false", onclick: () => this.filter() });
    const label = el("label", { class: "inline" }, el("span", {}, "Show "), pick);
    const head = ([text, isNumber]) => el("span", { role: "columnheader", class: isNumber && "number" }, text);
    const header = el("div", { class: "row head", role: "row" }, COLUMNS.map(head));
    this.body = el("div", { class: "rows", role: "rowgroup" });
    this.grid = el(
      "div",
      {
        class: "grid accounts", role: "treegrid", tabindex: 0, "aria-label": "Accounts", id: "accounts",
        onkeydown: (event) => this.key(event), onclick: (event) => this.click(event),
        onfocus: () => this.focus(),
      },
      el("div", { role: "rowgroup", class: "headgroup" }, header),
      this.body,
    );
    this.empty = el("p", { class: "note", hidden: true });
    this.detail = new Detail(user, () => this.close());
    const list = el("div", { class: "pane" }, el("div", { class: "tools" }, label, this.trouble, this.count), this.empty, this.grid);
    this.root = el("section", { class: "split", "aria-label": "Accounts" }, list, this.detail.root);
    this.rows = new Rows(this.grid, this.body, () => this.make(), (element, at) => this.fill(element, at));
    for (const path of tables.account.keys()) this.add(path);
    // Forecasts go on while nothing else does.
    this.timer = setInterval(() => {
      this.rows.draw();
      this.detail.update(null);
    }, 1000);
    this.update(null);
  }

  leave() {
    clearInterval(this.timer);
    this.rows.close();
  }

  /** The account that the address names is shown beside the tree. */
  go({ account }) {
    this.detail.show(account ?? null);
    this.root.classList.toggle("has-detail", Boolean(account));
    this.wanted = account;
    this.reveal();
  }

  /** Opens what is above the account that is wanted, and goes there, once. */
  reveal() {
    const node = this.tree.nodes.get(this.wanted);
    if (!node) return;
    this.wanted = null;
    for (let up = node.parent; up; up = up.parent) {
      if (!this.tree.isOpen(up)) up.isOpen = this.tree.isDirty = true;
    }
    this.move(node);
  }

  close() {
    location.hash = address("accounts");
    this.grid.focus();
  }

  add(path) {
    const state = STATES.indexOf(stateOf(tables.account.get(path)));
    this.tree.judge(this.tree.add(path), state);
  }

  /** Shows only what needs attention, or everything again. */
  filter() {
    this.tree.wantsTrouble = !this.tree.wantsTrouble;
    set(this.trouble, "aria-pressed", this.tree.wantsTrouble);
    this.look();
  }

  search(query) {
    this.tree.query = query.trim().toLowerCase();
    this.look();
  }

  /** Shows what is looked for by now. */
  look() {
    this.tree.isDirty = true;
    this.grid.scrollTop = 0;
    this.update(null);
  }

  pick(unit) {
    this.unit = unit;
    this.update(null);
  }

  /** Takes over what has changed; null: everything may have. */
  update(changed) {
    const keys = changed?.get("account");
    if (changed && !keys && !changed.has("ready")) return;
    for (const path of keys ?? []) {
      if (tables.account.has(path)) this.add(path);
      else this.tree.remove(path);
    }
    if (this.active && !this.tree.nodes.has(this.active.path)) this.active = null;
    this.draw();
    this.detail.update(keys ?? null);
    if (changed?.has("ready")) this.reveal();
  }

  draw() {
    const shown = this.tree.flat();
    const all = this.tree.nodes.size;
    set(this.grid, "aria-rowcount", shown.length + 1);
    put(this.count, live.ready ? `${all.toLocaleString("en")} account${all === 1 ? "" : "s"}` : "Loading…");
    this.empty.hidden = !live.ready || shown.length > 0;
    const inTrouble = TROUBLES.reduce((sum, at) => sum + this.tree.trouble[at], 0);
    put(this.trouble, `Needs attention: ${inTrouble.toLocaleString("en")}`);
    set(this.trouble, "title", told(this.tree.trouble) || null);
    const none = this.tree.wantsTrouble ? "No account needs attention." : "No account has that in its path.";
    put(this.empty, all ? none : "There are no accounts yet: the first call that names one makes it.");
    this.grid.hidden = !this.empty.hidden;
    this.rows.setCount(shown.length);
    this.rows.draw();
    this.place();
  }

  /** Says at which row the keyboard's place is by now. */
  place() {
    const at = this.tree.at.get(this.active);
    set(this.grid, "aria-activedescendant", at === undefined ? null : `row-${at}`);
  }

  make() {
    const cell = (name, isNumber) => el("span", { role: "gridcell", class: isNumber ? `${name} number` : name });
    const parts = {
      twist: el("span", { class: "twist", "aria-hidden": "true" }),
      text: el("span", { class: "text" }),
      badge: el("span", { class: "badge" }),
      below: el("span", { class: "badge below" }),
      bar: bar(),
      spent: cell("spent-of", true), left: cell("left", true), rate: cell("rate", true), end: cell("end", true),
    };
    Object.assign(parts, { amount: el("span", {}), what: el("span", { class: "what" }) });
    parts.spent.append(parts.amount, parts.what);
    const name = cell("name");
    name.append(parts.twist, parts.text, parts.badge, parts.below);
    const budget = cell("budget");
    budget.append(parts.bar);
    const element = el("div", { role: "row", class: "row" }, name, budget, parts.spent, parts.left, parts.rate, parts.end);
    return Object.assign(element, { parts, name });
  }

  fill(element, at) {
    const node = this.tree.shown[at];
    const row = tables.account.get(node.path);
    const isActive = node === this.active;
    const second = Math.floor(nowMs() / 1000);
    const { was } = element;
    const isOpen = this.tree.isOpen(node);
    const below = isOpen ? "" : told(node.below);
    if (was && was.node === node && was.row === row && was.isActive === isActive && was.second === second && was.below === below &&
      was.unit === this.unit && was.at === at && was.isOpen === isOpen && was.count === node.children.length) return;
    element.was = { node, row, isActive, second, unit: this.unit, at, isOpen, below, count: node.children.length };
    const { parts } = element;
    element.id = `row-${at}`;
    element.path = node.path;
    element.classList.toggle("active", isActive);
    set(element, "aria-level", node.level);
    set(element, "aria-rowindex", at + 2);
    set(element, "aria-selected", isActive);
    set(element, "aria-expanded", node.children.length ? isOpen : null);
    element.name.style.paddingInlineStart = `${(node.level - 1) * 1.1}rem`;
    put(parts.twist, node.children.length ? (isOpen ? "▾" : "▸") : "");
    put(parts.text, node.name);
    set(parts.text, "title", node.path);
    put(parts.badge, STATES[node.state]);
    parts.badge.className = `badge ${STATES[node.state]}`;
    put(parts.below, below && `${below} below`);
    set(parts.below, "title", below || null);
    this.fillBudget(parts, row && budgetOf(row, this.unit));
  }

  fillBudget(parts, budget) {
    parts.bar.hidden = !budget;
    if (!budget) {
      for (const name of ["left", "rate", "end", "what"]) put(parts[name], "");
      put(parts.amount, "—");
      return;
    }
    const now = standing(budget);
    parts.bar.fill(now.spent, now.held, now.limit, now.thresholds, barLabel(now));
    const used = now.isCapacity ? now.held : now.spent;
    put(parts.amount, `${brief(now.unit, used)} of ${brief(now.unit, now.limit)}`);
    put(parts.what, `${noun(now.unit)} ${per(now.period)}`.trim());
    put(parts.left, brief(now.unit, now.left));
    put(parts.rate, now.isCapacity ? "" : speed(now.unit, now.rate));
    put(parts.end, forecast(now));
    parts.end.classList.toggle("soon", now.inMs != null);
  }

  /** Moves the keyboard's place to a node. */
  move(node) {
    if (!node) return;
    this.active = node;
    const shown = this.tree.flat();
    this.rows.setCount(shown.length);
    const at = this.tree.at.get(node);
    if (at === undefined) return;
    this.rows.show(at);
    this.place();
  }

  focus() {
    const shown = this.tree.flat();
    if (shown.length) this.move(this.active && this.tree.at.has(this.active) ? this.active : shown[0]);
  }

  open(node, isOpen) {
    if (!node.children.length || this.tree.isFiltered) return;
    node.isOpen = isOpen;
    this.tree.isDirty = true;
    this.draw();
    this.move(node);
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { active, tree, rows } = this;
    const shown = tree.flat();
    const at = tree.at.get(active) ?? 0;
    const keys = {
      ArrowDown: () => this.move(shown[at + 1]),
      ArrowUp: () => this.move(shown[at - 1]),
      Home: () => this.move(shown[0]),
      End: () => this.move(shown.at(-1)),
      PageDown: () => this.move(shown[Math.min(shown.length - 1, at + rows.page)]),
      PageUp: () => this.move(shown[Math.max(0, at - rows.page)]),
      ArrowRight: () => (active?.children.length && !tree.isOpen(active) ? this.open(active, true) : this.move(active?.children[0])),
      ArrowLeft: () => (active?.children.length && tree.isOpen(active) && !tree.isFiltered ? this.open(active, false) : this.move(active?.parent)),
      Enter: () => active && this.choose(active),
      " ": () => active && this.choose(active),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  click(event) {
    const element = event.target.closest(".row");
    const node = element && this.tree.nodes.get(element.path);
    if (!node) return;
    this.active = node;
    if (event.target.classList.contains("twist")) this.open(node, !this.tree.isOpen(node));
    else this.choose(node);
  }

  choose(node) {
    location.hash = address("accounts", { account: node.path });
  }
}
