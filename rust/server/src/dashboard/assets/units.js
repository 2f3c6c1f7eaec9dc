// Units and times for people: shown rounded, read exactly.

const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const money = new Intl.NumberFormat("en", { style: "currency", currency: "USD" });
const small = new Intl.NumberFormat("en", {
  style: "currency", currency: "USD", maximumSignificantDigits: 2, minimumSignificantDigits: 2,
});
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const two = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

const count = { suffix: "", factors: { "": 1n, k: 1_000n, M: 1_000_000n, G: 1_000_000_000n } };

/** What each unit is called, the suffix that a bare number has, and the suffixes with their factors. */
export const UNITS = {
  usd_nanos: {
    name: "Money", suffix: "USD", base: "nanos",
    factors: { USD: 1_000_000_000n, $: 1_000_000_000n, nanos: 1n },
  },
  tokens: { name: "Tokens", ...count },
  gpu_ms: {
    name: "GPU time", suffix: "h", base: "ms",
    factors: { ms: 1n, s: 1_000n, min: 60_000n, h: 3_600_000n, d: 86_400_000n },
  },
  vram_bytes: {
    name: "GPU memory", suffix: "GiB", base: "B",
    factors: { B: 1n, MiB: 1n << 20n, GiB: 1n << 30n, TiB: 1n << 40n },
  },
  vram_mib_s: {
    name: "GPU memory × time", suffix: "GiBh", base: "MiBs",
    factors: { MiBs: 1n, GiBs: 1024n, GiBh: 1024n * 3600n },
  },
  energy_mj: {
    name: "Energy", suffix: "Wh", base: "mJ",
    factors: { mJ: 1n, J: 1_000n, Wh: 3_600_000n, kWh: 3_600_000_000n },
  },
  calls: { name: "Calls", ...count },
  concurrency: { name: "Concurrency", suffix: "", factors: { "": 1n } },
};

export const nameOf = (unit) => UNITS[unit]?.name ?? unit;

const SHOW = {
  usd_nanos(value) {
    const dollars = value / 1e9;
    return value && Math.abs(dollars) < 0.01 ? small.format(dollars) : money.format(dollars);
  },
  gpu_ms: (value) => (value < 0 ? `−${length(-value)}` : length(value)),
  vram_bytes: (value) => `${one.format(value / 2 ** 30)} GiB`,
  vram_mib_s: (value) => `${two.format(value / 1024 / 3600)} GiBh`,
  energy_mj: (value) => `${two.format(value / 3.6e6)} Wh`,
};

/** An amount where there is room for it. */
export function show(unit, value) {
  const amount = Number(value);
  return SHOW[unit] ? SHOW[unit](amount) : number.format(amount);
}

/** An amount at a glance. */
export function brief(unit, value) {
  const amount = Number(value);
  return SHOW[unit] || Math.abs(amount) < 1e6 ? show(unit, value) : compact.format(amount);
}

/** The word behind an amount that has no suffix of its own. */
export const noun = (unit, value) =>
  ({ tokens: value === 1 ? " token" : " tokens", calls: value === 1 ? " call" : " calls" })[unit] ?? "";

/** An amount to the last digit. */
export function exact(unit, value) {
  const { suffix, number: digits } = written(unit, value);
  const [whole, fraction] = digits.split(".");
  const grouped = number.format(BigInt(whole)) + (fraction ? `.${fraction}` : "");
  if (suffix === "USD") return `$${grouped}${fraction ? "" : ".00"}`;
  return suffix ? `${grouped} ${suffix}` : grouped + noun(unit, Number(value));
}

/** A rate per second, by the time in which it is a readable amount. */
export function speed(unit, perSecond) {
  if (perSecond == null) return "";
  if (!perSecond) return "idle";
  const enough = { usd_nanos: 1e7, vram_bytes: 1e8, energy_mj: 3.6e4, gpu_ms: 1e3 }[unit] ?? 1;
  const [time, name] = perSecond >= enough ? [1, "s"] : perSecond * 60 >= enough ? [60, "min"] : [3600, "h"];
  return `${brief(unit, Math.round(perSecond * time))}/${name}`;
}

const PARTS = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"]];

/** A length of time in its two largest units. */
export function length(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const at = PARTS.findIndex(([size]) => ms >= size);
  const [size, name] = PARTS[at];
  const whole = Math.floor(ms / size);
  const [rest, restName] = PARTS[at + 1] ?? [0, ""];
  const more = rest && Math.floor((ms - whole * size) / rest);
  return more ? `${whole} ${name} ${more} ${restName}` : `${whole} ${name}`;
}

/** About a length of time, in one number: `119 s`, `2 min`. */
export function about(ms) {
  const [size, name] = PARTS.find(([size]) => ms >= 2 * size) ?? PARTS.at(-1);
  return `${Math.max(1, Math.floor(ms / size))} ${name}`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
export const timeOf = (ms) => clock.format(ms);
export const momentOf = (ms) => moment.format(ms);
export const dayOf = (ms) => day.format(ms);

const PERIODS = { total: "in all", hour: "per hour", day: "per day", week: "per week", month: "per month" };

/** A period as a sentence has it. */
export function per(period) {
  const [kind, zone] = period.split("@");
  if (kind.startsWith("rolling:")) {
    const ms = kind.endsWith("ms") ? parseInt(kind.slice(8), 10) : parseInt(kind.slice(8), 10) * 1000;
    return `in any ${length(ms)}`;
  }
  return `${PERIODS[kind] ?? kind}${zone ? ` (${zone})` : ""}`;
}

/** The method of the server's burn rate: when nothing will be left, in ms; null: it lasts. */
export function exhaustedIn(left, perSecond, resetsInMs) {
  const HORIZON_S = 365 * 86_400;
  if (left <= 0) return 0;
  if (!perSecond || left > perSecond * HORIZON_S) return null;
  const ms = (left / perSecond) * 1000;
  return resetsInMs == null || ms < resetsInMs ? ms : null;
}

/** An amount as an input has it, exactly: in the unit's own suffix if that takes few digits. */
export function written(unit, value) {
  const { suffix, base, factors } = UNITS[unit];
  const factor = factors[suffix];
  const parts = (value % factor) * 10n ** 9n;
  if (parts % factor !== 0n) return { number: `${value}`, suffix: base };
  const decimals = `${parts / factor}`.padStart(9, "0").replace(/0+$/, "");
  const fraction = decimals ? `.${unit === "usd_nanos" ? decimals.padEnd(2, "0") : decimals}` : "";
  return { number: `${value / factor}${fraction}`, suffix };
}

/** Reads an amount as people write it: "25", "$25", "8 GiB", "2M". Throws what is wrong with it. */
export function read(unit, text) {
  const { suffix, factors } = UNITS[unit];
  const match = /^\s*(\$?)\s*(\d+|[1-9]\d{0,2}(?:[_, ]\d{3})+)(?:\.(\d+))?\s*([A-Za-z$]*)\s*$/.exec(text);
  const example = suffix ? `such as 25 or 25 ${suffix}` : "such as 2,000,000";
  if (!match && /\d,\d/.test(text)) throw new Error("Write a point for decimals, such as 1.5.");
  if (!match) throw new Error(`Write an amount ${example}.`);
  const given = match[4] || (match[1] && unit === "usd_nanos" ? "USD" : suffix);
  const factor = factors[given];
  if (factor === undefined || (match[1] && unit !== "usd_nanos")) {
    const known = Object.keys(factors).filter(Boolean).join(", ");
    throw new Error(`Write an amount ${example}${known ? `; with ${known}` : ""}.`);
  }
  const fraction = match[3] ?? "";
  const scaled = BigInt(match[2].replace(/[_, ]/g, "") + fraction) * factor;
  const scale = 10n ** BigInt(fraction.length);
  if (scaled % scale !== 0n) throw new Error("That is finer than the unit can count.");
  if (scaled / scale >= 2n ** 63n) throw new Error("That is beyond the largest amount.");
  return scaled / scale;
}
