// The OpenAPI document as a page: no viewer from elsewhere, because the console loads nothing from other addresses.

import { element } from "./dom.js";
import { prose } from "./markup.js";
import "./theme.js";

const openapi = await (await fetch("/openapi.json")).json();
const nav = document.getElementById("nav");
const routes = document.getElementById("routes");
document.getElementById("intro").replaceChildren(...prose(openapi.info.description, "intro"));

function resolve(schema) {
  return schema?.$ref ? openapi.components.schemas[schema.$ref.split("/").at(-1)] : schema || {};
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.join(" | ");
  const options = schema.anyOf || schema.oneOf;
  if (options) return [...new Set(options.map(kind))].filter((name) => name && name !== "null").join(" | ");
  if (schema.type === "array") return `${kind(schema.items)}[]`;
  return [schema.type].flat().filter((name) => name && name !== "null").join(" | ");
}

function table(title, rows) {
  if (!rows.length) return null;
  return element("table", {}, element("caption", {}, title), element("tbody", {}, ...rows.map((cells) => {
    const [first, ...rest] = cells;
    return element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell || "")));
  })));
}

function fields(schema) {
  const resolved = resolve(schema);
  const required = new Set(resolved.required || []);
  return Object.entries(resolved.properties || {}).map(([name, field]) => [
    name + (required.has(name) ? " *" : ""), kind(field), field.description || (field.default !== undefined
      ? `default ${JSON.stringify(field.default)}` : ""),
  ]);
}

const groups = new Map();
for (const [path, operations] of Object.entries(openapi.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const tag = operation.tags?.[0] || "other";
    if (!groups.has(tag)) groups.set(tag, []);
    groups.get(tag).push({ path, method, operation });
  }
}
for (const [tag, entries] of groups) {
  nav.append(element("h2", {}, tag));
  for (const { path, method, operation } of entries) {
    const id = `${method}-${path.replace(/[^a-z0-9]+/gi, "-")}`;
    nav.append(element("a", { href: `#${id}` }, `${method.toUpperCase()} ${path}`));
    const bodies = Object.entries(operation.requestBody?.content || {});
    const json = bodies.find(([type]) => type === "application/json")?.[1].schema;
    const reduced = json?.anyOf ? json.anyOf.find((option) => option.$ref) : json;
    const good = Object.entries(operation.responses).filter(([status]) => status < 400);
    const bad = Object.keys(operation.responses).filter((status) => status >= 400);
    const answers = good.map(([status, answer]) => [
      status, Object.entries(answer.content || {}).map(([type, content]) => kind(content.schema) === "string" ? type
        : kind(content.schema)).filter(Boolean).join(" | "), answer.description,
    ]);
    if (bad.length) answers.push([bad.join(" "), path.startsWith("/v1/chat") || path.startsWith("/v1/models") ? "OpenAI error" : "Problem",
      ""]);
    routes.append(element(
      "section", { class: "route", id },
      element("h2", {}, element("span", {}, method.toUpperCase()), path),
      ...prose(operation.description || operation.summary || "", id),
      table("Parameters", (operation.parameters || []).map((one) => [one.name + (one.required ? " *" : ""),
        `${one.in} ${kind(one.schema)}`, one.description || one.schema.description])),
      table(`Body: ${bodies.map(([type]) => type).join(", ")}`, fields(reduced)),
      table("Answers", answers),
    ));
  }
}
if (location.hash) document.querySelector(location.hash)?.scrollIntoView();
