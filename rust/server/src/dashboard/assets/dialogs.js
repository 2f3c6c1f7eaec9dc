// What operators change, each said in a sentence before it is done.

import { Failed, get, post } from "./api.js";
import { el, field, put, say } from "./dom.js";
import { tables } from "./store.js";
import { exact, nameOf, per, read, show, written } from "./units.js";

/**
 * A dialog of a form. `check` returns the sentence to confirm, or throws what is wrong; `act` does it
 * and returns what is said of it; without it there is only something to read. Without fields the
 * sentence is there at once.
 */
function ask({ title, fields, check, act, doing }) {
  const wrong = el("p", { class: "wrong", role: "alert" });
  const sentence = el("p", { class: "sentence" });
  const go = el("button", { type: "submit", class: "main" }, fields.length ? "Review" : doing);
  const back = el("button", { type: "button", onclick: () => step(false), hidden: true }, "Back");
  const cancel = el("button", { type: "button", onclick: () => dialog.close() }, act ? "Cancel" : "Close");
  const form = el("form", { novalidate: true, onsubmit: submit }, fields, sentence, wrong, el("p", { class: "actions" }, act && go, back, cancel));
  const heading = el("h2", { id: "dialog-title" }, title);
  const dialog = el("dialog", { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() }, heading, form);
  let confirms = false;

  function step(forward) {
    const text = forward ? check() : "";
    confirms = forward;
    put(sentence, text);
    put(wrong, "");
    for (const one of fields) one.hidden = forward;
    back.hidden = !forward || !fields.length;
    put(go, forward ? doing : "Review");
    if (forward) go.focus();
    else fields[0]?.querySelector("input")?.focus();
  }

  async function submit(event) {
    event.preventDefault();
    try {
      if (!confirms) return step(true);
      go.disabled = true;
      const done = await act();
      dialog.close(); // before it is said: what is behind an open dialog is not read out
      say(done);
    } catch (error) {
      put(wrong, error.message);
    } finally {
      go.disabled = false;
    }
  }

  document.body.append(dialog);
  dialog.showModal();
  if (!fields.length) step(true);
}

/** Changes the limit of a budget, unless somebody else does meanwhile. */
export async function changeLimit(account, unit, period) {
  let budget;
  try {
    const found = await get("/api/account", { account });
    budget = found.budgets.find((one) => one.unit === unit && named(one.period) === period);
    if (!budget) throw new Failed(0, "The budget is no longer there.");
  } catch (error) {
    return ask({ title: "Change a limit", fields: [], check: () => error.message });
  }
  const now = written(unit, BigInt(budget.limit));
  const input = el("input", { value: now.number, inputmode: "decimal", autocomplete: "off", required: true });
  const suffix = now.suffix || nameOf(unit).toLowerCase();
  let limit;
  const stops = () => {
    const shown = tables.account.get(account)?.budgets.find((one) => one[0] === unit && one[1] === period);
    const used = shown ? shown[3] + shown[4] : 0;
    return used < Number(limit) ? "" : ` ${show(unit, used)} is spent or held already: nothing will be left, and calls stop.`;
  };
  ask({
    title: `Limit of ${account}`,
    fields: [field(`New limit in ${suffix}, ${per(period)}`, input)],
    doing: "Change the limit",
    check() {
      limit = read(unit, now.suffix ? withSuffix(input.value, now.suffix) : input.value);
      if (limit === BigInt(budget.limit)) throw new Error("That is the limit already.");
      const way = limit > BigInt(budget.limit) ? "Raise" : "Lower";
      return `${way} the limit of ${account} from ${exact(unit, BigInt(budget.limit))} to ${exact(unit, limit)} ${per(period)}? It counts at once.${stops()}`;
    },
    async act() {
      await post("/api/limit", { account, unit, period: budget.period, before: budget.limit, limit: `${limit}` });
      return `The limit of ${account} is ${exact(unit, limit)} ${per(period)}.`;
    },
  });
}

const withSuffix = (text, suffix) => (/[A-Za-z$]/.test(text) ? text : `${text} ${suffix}`);

/** A period as the live picture names it. */
function named({ kind, time_zone: zone, length_ms: ms }) {
  if (kind === "rolling") return ms % 1000 ? `rolling:${ms}ms` : `rolling:${ms / 1000}s`;
  return kind === "total" || zone === "UTC" ? kind : `${kind}@${zone}`;
}

export function freeze(account, open) {
  const reason = el("input", { maxlength: 200, autocomplete: "off" });
  ask({
    title: `Freeze ${account}`,
    fields: [field("Reason, for whoever asks later", reason)],
    doing: "Freeze",
    check: () => `Freeze ${account} and everything below it? New calls are refused, and ` +
      `${open.toLocaleString("en")} open reservation${open === 1 ? "" : "s"} stop at the next step.`,
    async act() {
      await post("/api/freeze", { account, reason: reason.value.trim() });
      return `${account} is frozen.`;
    },
  });
}

export function unfreeze(account) {
  ask({
    title: `Unfreeze ${account}`,
    fields: [],
    doing: "Unfreeze",
    check: () => `Let ${account} and everything below it go on?`,
    async act() {
      await post("/api/unfreeze", { account });
      return `${account} is no longer frozen.`;
    },
  });
}
