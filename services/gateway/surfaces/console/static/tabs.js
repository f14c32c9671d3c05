// Tabs of which one is a stop for the Tab key; arrows, Home and End go between them.

import { element } from "./dom.js";

let made = 0;

// `panels` is a list of [name, function that fills the panel when it is first seen]. Answers {node, show(index)}.
export function tabs(label, panels, chosen = 0) {
  const number = (made += 1);
  const filled = new Set();
  const boxes = panels.map((_, index) => element("div", { role: "tabpanel", id: `panel-${number}-${index}`,
    "aria-labelledby": `tab-${number}-${index}`, hidden: true, tabIndex: 0 }));
  const heads = panels.map(([name], index) => element("button", {
    type: "button", role: "tab", id: `tab-${number}-${index}`, "aria-controls": `panel-${number}-${index}`, "aria-selected": "false",
      tabIndex: -1,
    onclick: () => show(index),
    onkeydown: (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: panels.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = (to + panels.length) % panels.length;
      show(next);
      heads[next].focus();
    },
  }, name));

  function show(index) {
    heads.forEach((head, at) => {
      head.setAttribute("aria-selected", String(at === index));
      head.tabIndex = at === index ? 0 : -1;
      boxes[at].hidden = at !== index;
    });
    if (!filled.has(index)) {
      filled.add(index);
      panels[index][1](boxes[index]);
    }
  }

  const node = element("div", { class: "tabs" }, element("div", { role: "tablist", "aria-label": label, class: "tablist" }, ...heads),
    ...boxes);
  show(chosen);
  return { node, show };
}
