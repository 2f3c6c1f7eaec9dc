// Elements out of data. Text goes in as text: nothing here, or anywhere on the page, reads markup.

/** Makes an element. `on…` properties listen; true and false set and leave out an attribute. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Sets a text, unless it is there already. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute, unless it is there already; null takes it away. */
export function set(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Says something to who cannot see it happen. */
export function say(text) {
  put(document.getElementById("said"), text);
}

/** A link to a view of the page. */
export function link(view, params, text, properties = {}) {
  return el("a", { href: address(view, params), ...properties }, text);
}

export function address(view, params = {}) {
  const pairs = Object.entries(params).filter(([, value]) => value);
  return `#/${view}${pairs.length ? `?${new URLSearchParams(pairs)}` : ""}`;
}

/** Shows the rows that have a query in them, and no others; returns how many that are. */
export function filter(rows, query) {
  const words = query.trim().toLowerCase();
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  return [...rows].filter((row) => !row.hidden).length;
}

/** A field with its label. */
export function field(label, control, properties = {}) {
  control.id ||= `field-${(field.count = (field.count ?? 0) + 1)}`;
  return el("div", { class: "field", ...properties }, el("label", { for: control.id }, label), control);
}

export function choice(options, chosen, properties = {}) {
  const one = ([value, text]) => el("option", { value, selected: value === chosen }, text);
  return el("select", properties, options.map(one));
}

/** A bar: what is spent, what is held behind it, and marks at thresholds. Update it by `fill`. */
export function bar() {
  const parts = { spent: el("span", { class: "spent" }), held: el("span", { class: "held" }) };
  const root = el("span", { class: "bar", role: "img" }, parts.held, parts.spent);
  const marks = [];
  root.fill = (spent, held, whole, thresholds, label) => {
    const share = (part) => (whole > 0 ? Math.max(0, Math.min(1, part / whole)) : part > 0 ? 1 : 0);
    parts.spent.style.transform = `scaleX(${share(spent)})`;
    parts.held.style.transform = `scaleX(${share(spent + held)})`;
    while (marks.length < thresholds.length) {
      marks.push(el("span", { class: "mark" }));
      root.append(marks.at(-1));
    }
    marks.forEach((mark, at) => {
      mark.hidden = at >= thresholds.length;
      if (!mark.hidden) mark.style.left = `${thresholds[at][0] / 10}%`;
    });
    set(root, "aria-label", label);
  };
  return root;
}

/** Rows of equal height, of which only those in sight exist. */
export class Rows {
  /**
   * @param scroller the element that scrolls; its child `body` gets the rows
   * @param make makes a row's element, without its content
   * @param fill fills an element with the item of an index
   */
  constructor(scroller, body, make, fill) {
    Object.assign(this, { scroller, body, make, fill, pool: [], count: 0, height: 0 });
    scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.resized = new ResizeObserver(() => this.measure());
    this.resized.observe(scroller);
  }

  measure() {
    this.height = parseFloat(getComputedStyle(this.body).getPropertyValue("--row")) || 44;
    this.sight = this.scroller.clientHeight;
    this.head = this.body.offsetTop;
    this.draw(true);
  }

  setCount(count) {
    if (count !== this.count) this.body.style.height = `${count * this.height}px`;
    this.count = count;
  }

  /** Fills what is in sight; `all`: also what has moved nowhere. */
  draw(all = false) {
    if (!this.height) return;
    if (all) this.body.style.height = `${this.count * this.height}px`;
    const top = this.scroller.scrollTop;
    const first = Math.max(0, Math.floor(top / this.height) - 4);
    const last = Math.min(this.count, Math.ceil((top + this.sight) / this.height) + 4);
    const needed = Math.ceil(this.sight / this.height) + 10;
    while (this.pool.length < needed) {
      const element = this.make();
      element.hidden = true;
      this.pool.push(element);
      this.body.append(element);
    }
    const used = new Set();
    for (let index = first; index < last; index += 1) {
      const element = this.pool[index % this.pool.length];
      used.add(element);
      if (element.at !== index || element.hidden || all) {
        element.style.transform = `translateY(${index * this.height}px)`;
        element.hidden = false;
        element.at = index;
      }
      this.fill(element, index);
    }
    for (const element of this.pool) {
      if (!used.has(element) && !element.hidden) element.hidden = true;
    }
  }

  /** Scrolls until a row is in sight. */
  show(index) {
    const top = index * this.height;
    const { scrollTop } = this.scroller;
    const room = this.sight - this.head;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + this.height > scrollTop + room) this.scroller.scrollTop = top + this.height - room;
    this.draw();
  }

  elementOf(index) {
    const element = this.pool[index % (this.pool.length || 1)];
    return element && !element.hidden && element.at === index ? element : null;
  }

  get page() {
    return Math.max(1, Math.floor((this.sight - this.head) / this.height) - 1);
  }

  close() {
    this.resized.disconnect();
  }
}
