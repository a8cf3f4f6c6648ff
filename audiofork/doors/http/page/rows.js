// A table of any length of which only the rows in sight exist.

import { setAttribute } from "./dom.js";

const OVERSCAN = 8;

/**
 * Shows items as rows of one height.
 *
 * Args:
 *   scroller: What scrolls, around an element around the table.
 *   table: Its tbody gets the rows. aria-rowcount and aria-rowindex tell where they are.
 *   makeRow: Returns {element, link, bind(item)}; the link is what the keyboard reaches.
 */
export class VirtualRows {
  items = [];
  rows = [];
  #first = 0;
  #rowHeight = 0;
  #headHeight = 0;
  #active = null; // the id of the item whose row the keyboard is at
  #asked = false;
  #all = false;

  constructor(scroller, table, makeRow) {
    this.scroller = scroller;
    this.table = table;
    this.sizer = table.parentElement; // as high as all rows would be
    this.body = table.tBodies[0];
    this.makeRow = makeRow;
    scroller.addEventListener("scroll", () => this.ask(false), { passive: true });
    this.body.addEventListener("keydown", (event) => this.#onKey(event));
    this.body.addEventListener("focusin", (event) => this.#onFocus(event));
    new ResizeObserver(() => this.#resized()).observe(scroller);
  }

  /** Show other items, or the same in another order. */
  show(items) {
    this.items = items;
    setAttribute(this.table, "aria-rowcount", items.length + 1);
    this.ask();
  }

  /** Paint before the next frame; not `all`: only rows that show another item than before. */
  ask(all = true) {
    this.#all ||= all;
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      const isAll = this.#all;
      this.#asked = this.#all = false;
      this.paint(isAll);
    });
  }

  focus(id) {
    const index = this.items.findIndex((item) => item.id === id);
    if (index >= 0) this.#focusIndex(index);
    return index >= 0;
  }

  #resized() {
    this.#rowHeight = parseFloat(getComputedStyle(this.table).getPropertyValue("--row")) || 32;
    this.#headHeight = this.table.tHead.offsetHeight;
    const wanted = Math.ceil(this.scroller.clientHeight / this.#rowHeight) + 2 * OVERSCAN;
    while (this.rows.length < wanted) {
      const row = this.makeRow();
      this.rows.push(row);
      this.body.append(row.element);
    }
    while (this.rows.length > wanted) this.rows.pop().element.remove();
    this.paint();
  }

  paint(all = true) {
    // All that is read comes before all that is written: else the layout would be computed twice.
    const scrolled = this.scroller.scrollTop;
    const focused = this.body.contains(document.activeElement);
    const most = Math.max(0, this.items.length - this.rows.length);
    const above = Math.floor(scrolled / this.#rowHeight) - OVERSCAN;
    this.#turnTo(Math.min(most, Math.max(0, above)));
    this.table.style.marginTop = `${this.#first * this.#rowHeight}px`;
    this.sizer.style.height = `${this.items.length * this.#rowHeight + this.#headHeight}px`;
    this.rows.forEach((row, place) => this.#bind(row, this.#first + place, all));
    if (focused) this.#follow();
    this.#reachable(Math.ceil(scrolled / this.#rowHeight));
  }

  /** Let rows that have left the sight at one end come in at the other; all others stay as they are. */
  #turnTo(first) {
    const steps = first - this.#first;
    this.#first = first;
    if (Math.abs(steps) >= this.rows.length) return; // all are others anyway
    if (steps > 0) {
      const turned = this.rows.splice(0, steps);
      this.rows.push(...turned);
      this.body.append(...turned.map((row) => row.element));
    } else if (steps < 0) {
      const turned = this.rows.splice(steps);
      this.rows.unshift(...turned);
      this.body.prepend(...turned.map((row) => row.element));
    }
  }

  #bind(row, index, all) {
    const item = this.items[index] ?? null;
    if (!all && row.item === item) return;
    row.item = item;
    if (row.element.hidden !== !item) row.element.hidden = !item;
    if (!item) return;
    setAttribute(row.element, "aria-rowindex", index + 2);
    row.bind(item);
  }

  /** Let the focus stay at its item, which may have another row now, or none. */
  #follow() {
    const row = this.rows.find((one) => one.item && one.item.id === this.#active);
    if (!row) this.scroller.focus({ preventScroll: true });
    else if (document.activeElement !== row.link) row.link.focus({ preventScroll: true });
  }

  /** Let Tab reach one row: the active one, or the first in sight. */
  #reachable(firstSeen) {
    const there = this.rows.filter((row) => row.item);
    const reached =
      there.find((row) => row.item.id === this.#active) ??
      there[Math.min(there.length - 1, firstSeen - this.#first)];
    for (const row of this.rows) setAttribute(row.link, "tabindex", row === reached ? 0 : -1);
  }

  #onFocus(event) {
    const row = this.rows.find((one) => one.element.contains(event.target));
    if (row?.item) this.#active = row.item.id;
    this.#reachable(0);
  }

  #onKey(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.#rowHeight) - 2);
    const steps = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const at = this.items.findIndex((item) => item.id === this.#active);
    this.#focusIndex(Math.max(0, Math.min(this.items.length - 1, at + steps[event.key])));
  }

  #focusIndex(index) {
    const top = index * this.#rowHeight;
    const room = this.scroller.clientHeight - this.#headHeight;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + this.#rowHeight > this.scroller.scrollTop + room)
      this.scroller.scrollTop = top + this.#rowHeight - room;
    this.#active = this.items[index].id;
    this.paint();
    this.rows[index - this.#first]?.link.focus({ preventScroll: true });
  }
}
