// One budget as the live picture has it: a tuple (see `look.rs`) turned into words.

import { nowMs } from "./store.js";
import { about, exhaustedIn, show } from "./units.js";

/** How an account may stand, the worst last; the first: all is well. */
export const STATES = ["", "warn", "degrade", "empty", "stop", "over", "frozen above", "frozen"];
const VERDICTS = ["", "", "warn", "degrade", "stop"];

/** How an account stands, in a word: as `bursar top` has it. */
export function stateOf(row) {
  if (row.frozen) return "frozen";
  if (row.stopped) return "frozen above";
  const least = Math.min(1, ...row.budgets.map(([, , limit, held, spent]) => limit - held - spent));
  if (least < 0) return "over";
  const verdict = VERDICTS[row.verdict] ?? "";
  return verdict !== "stop" && least === 0 ? "empty" : verdict;
}

/** What the columns say of a budget. */
export function standing([unit, period, limit, held, spent, end, rolls, thresholds, rate]) {
  const left = limit - spent;
  const resets = end ? Math.max(0, end - nowMs()) : rolls || null;
  const isCapacity = unit === "vram_bytes" || unit === "concurrency";
  const inMs = isCapacity ? null : exhaustedIn(left, rate, resets);
  return { unit, period, limit, held, spent, end, thresholds, rate, left: left - held, inMs, isCapacity };
}

export function barLabel({ unit, limit, held, spent, thresholds }) {
  const marks = thresholds.map(([permille]) => `${permille / 10} %`).join(", ");
  return `${show(unit, spent)} spent and ${show(unit, held)} held of ${show(unit, limit)}` +
    (marks ? `; marks at ${marks}` : "");
}

/** A forecast in words; empty: nothing is known, or it does not apply. */
export function forecast({ left, inMs, rate, isCapacity }) {
  if (isCapacity) return left <= 0 ? "full" : "";
  if (inMs === 0) return "used up";
  if (inMs != null) return `empty in ${about(inMs)}`;
  return rate == null ? "" : "lasts";
}
