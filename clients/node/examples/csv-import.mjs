#!/usr/bin/env node
/**
 * A worker that imports CSV files as NDJSON: one JSON object a row, exactly once each, whoever is killed when.
 *
 *     node csv-import.mjs --engine http://127.0.0.1:50051 --import-dir DIR --data-dir DIR
 *
 * offers the kind `csv-import-node` {path}, which results in {rows, rejected, file}. RFC 4180: quoted fields may hold
 * commas, quotes and line ends; the first record names the columns. A row with another number of fields is rejected, and
 * counted. It reads only below --import-dir.
 *
 * Why no row is lost or doubled: each attempt appends to a part file of its own. A batch is first forced to the disk; then
 * the checkpoint says how far the input was read and how long every part is; only a stored checkpoint counts. The next
 * attempt reads on from there, and takes of its predecessor's part no more than the checkpoint says: what a predecessor
 * that was thought dead still writes lies beyond. At the end the parts are joined and renamed into place.
 */

import { open, mkdir, realpath, rename, rm } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";
import { JobFailed, Worker } from "tidegate";

const BATCH_ROWS = 500;
const MAX_RECORD_BYTES = 1024 * 1024;
const [QUOTE, LF] = [0x22, 0x0a];

const { values: flags } = parseArgs({
  options: {
    engine: { type: "string", default: process.env.TIDEGATE_ENGINE ?? "http://127.0.0.1:50051" },
    "import-dir": { type: "string", default: "." },
    "data-dir": { type: "string", default: "./tidegate-data" },
  },
});
const importDir = await realpath(flags["import-dir"]);
const dataDir = path.resolve(flags["data-dir"]);
await mkdir(dataDir, { recursive: true });

/**
 * Where an import stands.
 * @typedef {{ offset: number, rows: number, rejected: number, columns: string[] | null, parts: { file: string, bytes: number }[] }} Position
 */

/** @param {import("tidegate").JobContext} ctx @param {{ path?: unknown }} input */
async function importCsv(ctx, input) {
  const source = await open(await allowed(input.path));
  const parts = [];
  try {
    const total = (await source.stat()).size;
    /** @type {Position} */
    const at = ctx.resume ? JSON.parse(ctx.resume.data.toString()) : { offset: 0, rows: 0, rejected: 0, columns: null, parts: [] };
    ctx.log(ctx.resume ? `resuming behind row ${at.rows}, at byte ${at.offset}` : `importing ${total} bytes`);
    const mine = { file: path.join(dataDir, `${ctx.jobId}.${ctx.attempt}.part`), bytes: 0 };
    const part = await open(mine.file, "w");
    parts.push(part);
    at.parts.push(mine);
    let batch = "";
    let batched = 0;
    const commit = async () => {
      const bytes = Buffer.from(batch);
      await part.appendFile(bytes);
      await part.sync();
      mine.bytes += bytes.length;
      [batch, batched] = ["", 0];
      ctx.progress({ done: at.offset, total, unit: "bytes", percent: total === 0 ? 100 : (100 * at.offset) / total, message: `${at.rows} rows` });
      await ctx.checkpoint("rows", JSON.stringify(at));
    };
    for await (const { fields, end } of records(source, at.offset)) {
      ctx.signal.throwIfAborted();
      at.offset = end;
      if (!at.columns) {
        at.columns = fields;
      } else if (fields.length !== at.columns.length) {
        at.rejected += 1;
      } else {
        batch += `${JSON.stringify(Object.fromEntries(at.columns.map((name, i) => [name, fields[i]])))}\n`;
        at.rows += 1;
        batched += 1;
      }
      if (batched === BATCH_ROWS) await commit();
    }
    await commit();
    const file = await join(ctx, at.parts);
    return { rows: at.rows, rejected: at.rejected, file };
  } finally {
    await Promise.all([source, ...parts].map((file) => file.close()));
  }
}

/** The file to read, if it may be read. @param {unknown} name */
async function allowed(name) {
  if (typeof name !== "string" || name === "") throw new JobFailed("input_invalid", "path: the name of a file below the import directory");
  const file = await realpath(path.resolve(importDir, name)).catch(() => "");
  // The same words for both, so that nobody learns what else there is.
  if (!file.startsWith(importDir + path.sep)) throw new JobFailed("not_found", `there is no ${name} below the import directory`);
  return file;
}

/** The records of a file from an offset that lies between two of them. @param {import("node:fs/promises").FileHandle} file @param {number} start */
async function* records(file, start) {
  let rest = Buffer.alloc(0);
  let offset = start;
  let [scanned, quoted] = [0, false];
  for await (const chunk of file.createReadStream({ start, autoClose: false })) {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    let begin = 0;
    for (; scanned < rest.length; scanned += 1) {
      // A quote within quotes is doubled, and so changes nothing.
      if (rest[scanned] === QUOTE) quoted = !quoted;
      if (rest[scanned] !== LF || quoted) continue;
      const record = rest.subarray(begin, scanned);
      begin = scanned + 1;
      if (record.length > 0) yield { fields: split(record), end: offset + begin };
    }
    offset += begin;
    rest = rest.subarray(begin);
    scanned -= begin;
    if (rest.length > MAX_RECORD_BYTES) throw new JobFailed("too_large", `the record at byte ${offset} is longer than 1 MiB: is a quote missing?`);
  }
  if (rest.length > 0) yield { fields: split(rest), end: offset + rest.length };
}

/** The fields of one record. @param {Buffer} record */
function split(record) {
  const text = record.toString("utf8").replace(/\r$/, "").replace(/^\ufeff/, "");
  const fields = [];
  for (let at = 0; at <= text.length; at += 1) {
    let field = "";
    for (let stretch = 0; text[at] === '"'; stretch += 1) {
      const end = text.indexOf('"', at + 1);
      // Two quoted stretches side by side are one field with a quote between them.
      field += (stretch === 0 ? "" : '"') + text.slice(at + 1, end === -1 ? text.length : end);
      at = end === -1 ? text.length : end + 1;
    }
    const comma = text.indexOf(",", at);
    const end = comma === -1 ? text.length : comma;
    fields.push(field + text.slice(at, end));
    at = end;
  }
  return fields;
}

/** Joins the parts, each as long as the checkpoint says. @param {import("tidegate").JobContext} ctx @param {{ file: string, bytes: number }[]} parts */
async function join(ctx, parts) {
  const name = `${ctx.jobId}.ndjson`;
  const joined = path.join(dataDir, `${name}.${ctx.attempt}.tmp`);
  const out = await open(joined, "w");
  try {
    for (const { file, bytes } of parts.filter(({ bytes }) => bytes > 0)) {
      const part = await open(file);
      try {
        for await (const chunk of part.createReadStream({ end: bytes - 1, autoClose: false })) await out.appendFile(chunk);
      } finally {
        await part.close();
      }
    }
    await out.sync();
  } finally {
    await out.close();
  }
  await rename(joined, path.join(dataDir, name));
  // After the rename: a worker that is killed in between leaves parts behind, and no wrong result.
  await Promise.all(parts.map(({ file }) => rm(file, { force: true })));
  return name;
}

const offer = {
  description: "Imports a CSV file as NDJSON, every row exactly once.",
  inputSchema: { type: "object", required: ["path"], properties: { path: { type: "string", description: "a file below the import directory" } } },
  example: { path: "airports.csv" },
};
await new Worker(flags.engine, { name: "csv-import.mjs" }).kind("csv-import-node", offer, importCsv).run();
process.exit();
