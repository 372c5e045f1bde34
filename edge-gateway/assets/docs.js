// The page /docs: shows /openapi.json, and needs nothing from elsewhere.
//
// Everything from the document becomes text nodes, never markup.

const METHODS = ["get", "post", "put", "patch", "delete"];

/** An element with children; texts are text. */
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** The few marks that descriptions use: paragraphs, **bold**, `code`, [links](/to). */
function prose(text = "") {
  return text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => h("p", {}, inline(paragraph)));
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`|\[[^\]]+\]\(\/[^)]*\))/).map((part) => {
    const link = /^\[([^\]]+)\]\((\/[^)]*)\)$/.exec(part);
    if (link) return h("a", { href: link[2] }, link[1]);
    if (part.startsWith("**")) return h("strong", {}, part.slice(2, -2));
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    return part;
  });
}

/** What a schema is, in a few words, with links to the types it names. */
function type(schema = {}) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [h("a", { href: `#type-${name}` }, name)];
  }
  if (schema.contentSchema) return ["JSON text of ", ...type(schema.contentSchema)];
  const either = schema.oneOf ?? schema.anyOf;
  if (either) return either.flatMap((one, index) => [index ? " or " : "", ...type(one)]);
  if (schema.type === "array") return ["list of ", ...type(schema.items)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  const words = [schema.type ?? (schema.properties || schema.allOf ? "object" : "any JSON")].flat().join(" or ");
  const bounds = ["minimum", "maximum", "pattern"].filter((key) => key in schema).map((key) => `${key} ${schema[key]}`);
  return [[words, schema.format, ...bounds].filter(Boolean).join(", ")];
}

function row(name, schema, needed, description) {
  const heading = h("th", { scope: "row" }, name);
  if (needed) heading.className = "needed";
  return h("tr", {}, heading, h("td", { class: "type" }, type(schema)), h("td", {}, inline(description ?? schema.description ?? "")));
}

function table(rows) {
  return rows.length ? h("table", {}, h("tbody", {}, rows)) : null;
}

/** The fields of an object, those of the types it is made of included. */
function fields(schema) {
  const own = Object.entries(schema.properties ?? {});
  const rows = own.map(([name, property]) => row(name, property, schema.required?.includes(name)));
  return [...rows, ...(schema.allOf ?? []).flatMap((part) => (part.$ref ? [row("…", part, false, "and its fields")] : fields(part)))];
}

function bodies(content = {}) {
  return Object.entries(content).map(([media, body]) =>
    h("div", { class: "type" }, media, ": ", body.itemSchema ? ["stream of ", ...type(body.itemSchema)] : type(body.schema)));
}

function operation(path, method, { operationId, summary, description, parameters = [], requestBody, responses }) {
  const inputs = parameters.map((one) => row(one.name, one.schema, one.required, `${one.description ?? ""} (${one.in})`));
  const answers = Object.entries(responses).map(([status, answer]) =>
    h("tr", {}, h("th", { scope: "row" }, status), h("td", {}, inline(answer.description), bodies(answer.content))));
  return h("article", { id: operationId, "data-testid": "operation" },
    h("h3", {}, h("span", { class: `method ${method}` }, method), h("span", { class: "path" }, path), summary),
    prose(description),
    inputs.length ? [h("h3", {}, "Parameters"), table(inputs)] : [],
    requestBody ? [h("h3", {}, "Body"), ...bodies(requestBody.content)] : [],
    h("h3", {}, "Answers"), table(answers));
}

/** The shape of one event of a stream, by its name. */
function variants(schema) {
  return (schema.oneOf ?? []).filter((one) => one.properties).map((one) =>
    row(one.properties.event?.enum?.[0] ?? "…", one.properties.data ?? one, false, one.properties.id ? "with an id" : ""));
}

function schemaCard([name, schema]) {
  const rows = [...fields(schema), ...variants(schema)];
  return h("article", { id: `type-${name}` }, h("h3", {}, name), prose(schema.description), table(rows) ?? h("p", { class: "type" }, type(schema)));
}

function show(api) {
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}: the API`;
  document.getElementById("intro").replaceChildren(...prose(api.info.description));
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ path, method, ...item[method] })));
  document.getElementById("contents").replaceChildren(h("ul", {}, operations.map((one) =>
    h("li", {}, h("a", { href: `#${one.operationId}` }, one.summary), " ", h("code", {}, `${one.method.toUpperCase()} ${one.path}`)))));
  document.getElementById("operations").replaceChildren(...api.tags.flatMap((tag) => [
    h("h2", { id: tag.name }, tag.name[0].toUpperCase() + tag.name.slice(1)),
    ...prose(tag.description),
    ...operations.filter((one) => one.tags.includes(tag.name)).map((one) => operation(one.path, one.method, one)),
  ]));
  document.getElementById("schemas").replaceChildren(...Object.entries(api.components.schemas).map(schemaCard));
  document.getElementById("types").hidden = false;
  // The part that the address names was not there when the page was loaded.
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  show(await response.json());
} catch (error) {
  document.getElementById("intro").textContent = `The document cannot be shown: ${error.message}`;
}
