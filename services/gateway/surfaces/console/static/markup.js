// The little Markdown that agents use, as DOM nodes. Nothing is ever set as HTML, so no text can become markup.

export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("data-") || key.startsWith("aria-") || key === "role" || key === "href" || key === "id") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\[[a-z]\d{1,3}\])/g;

function inline(text, anchor) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    const [whole, code, strong] = match;
    if (code) nodes.push(element("code", {}, code.slice(1, -1)));
    else if (strong) nodes.push(element("strong", {}, strong.slice(2, -2)));
    else {
      const id = whole.slice(1, -1);
      nodes.push(element("a", { class: "cite", href: `#${anchor}-${id}`, "aria-label": `Source ${id}` }, id));
    }
    at = match.index + whole.length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function paragraph(block, anchor) {
  const lines = block.split("\n");
  const heading = /^#{1,6}\s+(.*)$/.exec(lines[0]);
  if (heading) {
    const rest = lines.slice(1).join("\n").trim();
    return [element("h3", {}, ...inline(heading[1], anchor)), ...(rest ? paragraph(rest, anchor) : [])];
  }
  for (const [name, mark] of [["ul", /^\s*[-*]\s+/], ["ol", /^\s*\d+[.)]\s+/]]) {
    if (lines.every((line) => mark.test(line))) {
      return [element(name, {}, ...lines.map((line) => element("li", {}, ...inline(line.replace(mark, ""), anchor))))];
    }
  }
  const nodes = [];
  lines.forEach((line, index) => {
    if (index) nodes.push(document.createElement("br"));
    nodes.push(...inline(line, anchor));
  });
  return [element("p", {}, ...nodes)];
}

// Nodes for a text; `anchor` is the prefix of the ids that citations point to.
export function prose(text, anchor) {
  const nodes = [];
  text.split(/^```[^\n]*\n?/m).forEach((part, index) => {
    if (index % 2) nodes.push(element("pre", { tabIndex: 0 }, element("code", {}, part.replace(/\n$/, ""))));
    else for (const block of part.split(/\n{2,}/)) if (block.trim()) nodes.push(...paragraph(block.trim(), anchor));
  });
  return nodes;
}

export function json(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
