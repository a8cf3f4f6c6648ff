// Makes elements out of names and texts; never out of markup, because texts come from callers and servers.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. A prop is an attribute, or with "on" before its name a listener; null and false leave it out. */
export function h(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same, of SVG. */
export function svg(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== ""),
  );
  return element;
}

/** Set a text, if it is another. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute, if it is another; null removes it. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

let announcer = null;

/** Show a notice for some seconds; screen readers read it out. */
export function notify(text, kind = "") {
  announcer ??= document.getElementById("notices");
  const notice = h("p", { class: `notice ${kind}` }, text);
  while (announcer.childElementCount >= 4) announcer.firstElementChild.remove();
  announcer.append(notice);
  setTimeout(() => notice.remove(), 8000);
}

/** Ask before something that cannot be undone; resolve to whether it may be. */
export function confirmed(question, action) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "question" },
      h(
        "form",
        { method: "dialog" },
        h("p", { id: "question" }, question),
        h(
          "div",
          { class: "actions" },
          h("button", { value: "no", type: "submit" }, "Keep it"),
          h("button", { value: "yes", type: "submit", class: "danger" }, action),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
