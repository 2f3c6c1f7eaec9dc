// One account: its budgets, what may be done about it, and where to read on.

import { bar, el, link, put, set } from "./dom.js";
import { changeLimit, freeze, unfreeze } from "./dialogs.js";
import { barLabel, forecast, standing, stateOf } from "./budget.js";
import { live, nowMs, tables } from "./store.js";
import { length, nameOf, per, show, speed, timeOf } from "./units.js";

/** What a state means. */
const MEANINGS = {
  warn: "A threshold is passed: calls are answered WARN.",
  degrade: "A threshold is passed: calls are answered DEGRADE, with advice to be cheaper.",
  empty: "Nothing is left of a budget: calls that need it are refused.",
  stop: "A threshold is passed: calls are answered STOP.",
  over: "More is used than a limit: calls are answered STOP.",
  frozen: "It is frozen, with everything below it.",
  "frozen above": "An account above it is frozen.",
};

/** The accounts above a path that are there, the nearest first. */
function above(path) {
  const parts = path.split("/").slice(0, -1);
  return parts.map((_, at) => parts.slice(0, parts.length - at).join("/")).filter((up) => tables.account.has(up));
}

function meaning(row, path) {
  const word = stateOf(row);
  const by = word === "frozen above" && above(path).find((up) => tables.account.get(up).frozen);
  const reason = (by ? tables.account.get(by) : row.frozen && row)?.reason;
  const first = by ? `It is frozen by ${by}, above it.` : MEANINGS[word];
  return first && reason ? `${first} Reason: ${reason}` : first;
}

export class Detail {
  constructor(user, close) {
    this.user = user;
    this.title = el("h2", { tabindex: -1 });
    this.state = el("p", { class: "muted" });
    this.actions = el("p", { class: "actions" });
    this.budgets = el("div", { class: "budgets" });
    const back = el("button", { type: "button", class: "quiet close", "aria-label": "Close", onclick: close }, "×");
    this.root = el(
      "aside",
      {
        class: "detail", hidden: true, "aria-label": "Account",
        onkeydown: (event) => event.key === "Escape" && close(),
      },
      back, this.title, this.state, this.actions, this.budgets,
    );
    this.cards = new Map();
  }

  get canManage() {
    return this.user.role === "operator";
  }

  show(path) {
    this.root.hidden = path === null;
    if (path === this.path) return;
    this.path = path;
    this.cards.clear();
    this.budgets.replaceChildren();
    if (path === null) return;
    put(this.title, path);
    this.update(null);
    this.title.focus({ preventScroll: true });
  }

  update(keys) {
    if (!this.path || (keys && !keys.has(this.path))) return;
    const row = tables.account.get(this.path);
    if (!row) {
      put(this.state, live.ready ? "There is no such account, or it has retired." : "Loading…");
      const [nearest] = live.ready ? above(this.path) : [];
      const up = () => nearest && link("accounts", { account: nearest }, `To ${nearest}`);
      this.offer(`gone ${nearest} ${this.path}`, up);
      this.budgets.replaceChildren();
      this.cards.clear();
      return;
    }
    const open = `${row.open.toLocaleString("en")} open reservation${row.open === 1 ? "" : "s"}`;
    put(this.state, [meaning(row, this.path), open].filter(Boolean).join(" · "));
    this.offer(`${row.frozen} ${this.path}`, () => this.change(row.frozen));
    this.fill(row);
  }

  /** Shows what may be done, unless that is there already. */
  offer(kind, make) {
    if (this.offered === kind) return;
    this.offered = kind;
    const about = { account: this.path };
    const hadFocus = this.actions.contains(document.activeElement);
    const all = [make(), link("history", about, "History"), link("entries", about, "Entries")];
    this.actions.replaceChildren(...all.filter(Boolean));
    if (hadFocus) this.actions.firstElementChild.focus();
  }

  change(isFrozen) {
    if (!this.canManage) return null;
    const button = (text, click) => el("button", { type: "button", onclick: click }, text);
    if (isFrozen) return button("Unfreeze…", () => unfreeze(this.path));
    return button("Freeze…", () => freeze(this.path, tables.account.get(this.path)?.open ?? 0));
  }

  fill(row) {
    const names = new Set();
    for (const budget of row.budgets) {
      const name = `${budget[0]} ${budget[1]}`;
      names.add(name);
      let card = this.cards.get(name);
      if (!card) {
        this.cards.set(name, (card = this.card(budget)));
        this.budgets.append(card.root);
      }
      this.fillCard(card, standing(budget));
    }
    for (const [name, card] of this.cards) {
      if (!names.has(name)) {
        card.root.remove();
        this.cards.delete(name);
      }
    }
    let note = this.budgets.querySelector(".note");
    if (!names.size && !note) {
      note = el("p", { class: "note" }, "It has no budget of its own: those above it count.");
      this.budgets.append(note);
    } else if (names.size) note?.remove();
  }

  card([unit, period]) {
    const figures = {};
    const term = (name, text) => [el("dt", {}, text), (figures[name] = el("dd", {}))];
    const list = el(
      "dl", { class: "figures" },
      ["limit", "spent", "held", "left", "rate", "end", "reset"].flatMap((name, at) =>
        term(name, ["Limit", "Spent", "Held", "Left", "Rate", "Forecast", "Resets"][at])),
    );
    const title = el("h3", {}, `${nameOf(unit)} ${per(period)}`);
    const change = this.canManage && el(
      "button", { type: "button", class: "small", onclick: () => changeLimit(this.path, unit, period) }, "Change the limit…",
    );
    const shape = bar();
    return { root: el("article", { class: "card" }, title, shape, list, change), bar: shape, figures };
  }

  fillCard({ bar: shape, figures }, now) {
    shape.fill(now.spent, now.held, now.limit, now.thresholds, barLabel(now));
    const { unit } = now;
    for (const name of ["limit", "spent", "held", "left"]) put(figures[name], show(unit, now[name]));
    put(figures.rate, now.isCapacity ? "—" : speed(unit, now.rate) || "—");
    const at = now.inMs ? ` (${timeOf(nowMs() + now.inMs)})` : "";
    put(figures.end, forecast(now) ? `${forecast(now)}${now.inMs < 86_400_000 ? at : ""}` : "—");
    put(figures.reset, now.end ? `in ${length(Math.max(0, now.end - nowMs()))}` : "—");
    set(figures.left, "class", now.left < 0 ? "over" : null);
  }
}
