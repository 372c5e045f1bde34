/** The example, in processes of its own, on a real engine: imported rows equal the input's, whoever is killed when. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import path from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { Client } from "tidegate";
import { Engine, start, until } from "./stack.js";

const EXAMPLE = path.join(import.meta.dirname, "../examples/csv-import.mjs");
const AIRPORTS = path.join(import.meta.dirname, "../../../worker/examples/airports.csv");
let engine;
let client;
let workers = [];

before(async () => {
  engine = await Engine.start();
  client = new Client(engine.uri);
  await mkdir(path.join(engine.dir, "in"));
  symlinkSync(AIRPORTS, path.join(engine.dir, "outside.csv"));
});
beforeEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.stop("SIGKILL")));
});
after(async () => {
  await Promise.all(workers.map((worker) => worker.stop("SIGKILL")));
  client?.close();
  await engine?.stop();
});

function worker() {
  const child = start(process.execPath, [EXAMPLE, `--engine=${engine.uri}`, `--import-dir=${engine.dir}/in`, `--data-dir=${engine.dir}/out`]);
  workers.push(child);
  return child;
}

const offered = () => until("a worker offers the kind", async () => (await client.kinds()).some(({ kind, live }) => kind === "csv-import-node" && live));
const rowsOf = (file) => readFileSync(path.join(engine.dir, "out", file), "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));

/** Submits an import, calls `during` with each event, and returns the last one. */
async function run(name, during = () => {}) {
  const { jobId } = await client.submit("csv-import-node", { path: name });
  let last;
  let seq = 0;
  for await (const event of client.watch(jobId)) {
    assert.equal(event.seq, seq + 1, "no hole and no double");
    seq = event.seq;
    last = event;
    await during(event, jobId);
  }
  return { jobId, last };
}

/** A file whose row i says i and has everything that a careless reader stumbles over. */
function awkward(name, rows) {
  let text = "\ufeffid,name,note\r\n";
  for (let i = 0; i < rows; i += 1) text += `${i},"n, ${i}","""quoted"" \n line ${i} ü"\r\n`;
  writeFileSync(path.join(engine.dir, "in", name), text);
}

test("a real file is imported as it is", async () => {
  worker();
  await offered();
  writeFileSync(path.join(engine.dir, "in", "airports.csv"), readFileSync(AIRPORTS));
  const { last } = await run("airports.csv");
  assert.equal(last.type, "complete", JSON.stringify(last));
  const lines = readFileSync(AIRPORTS, "utf8").trimEnd().split("\n").length - 1;
  assert.deepEqual([last.result.rows, last.result.rejected], [lines, 0]);
  const rows = rowsOf(last.result.file);
  assert.equal(rows.length, lines);
  assert.deepEqual(rows[0], { iata: "00M", name: "Thigpen", city: "Bay Springs", state: "MS", country: "USA", latitude: "31.95376472", longitude: "-89.23450472" });
});

test("awkward fields, and rows that are wrong", async () => {
  worker();
  await offered();
  writeFileSync(path.join(engine.dir, "in", "odd.csv"), 'a,b\n,\n"""x",""\n1\n1,2,3\n"p,q","r\ns"');
  const { last } = await run("odd.csv");
  assert.deepEqual([last.result?.rows, last.result?.rejected], [3, 2], JSON.stringify(last));
  assert.deepEqual(rowsOf(last.result.file), [{ a: "", b: "" }, { a: '"x', b: "" }, { a: "p,q", b: "r\ns" }]);
});

test("nothing is read outside the import directory", async () => {
  worker();
  await offered();
  for (const name of ["../outside.csv", "/etc/passwd", "missing.csv", ""]) {
    const { last } = await run(name);
    assert.equal(last.type, "failed", name);
    assert.match(last.code, /not_found|input_invalid/);
  }
});

test("j2 a worker is killed in the middle, twice, and no row is lost or doubled", { timeout: 90_000 }, async () => {
  const count = 60_000;
  awkward("big.csv", count);
  let current = worker();
  await offered();
  let kills = 0;
  let checkpoints = 0;
  const { jobId, last } = await run("big.csv", async (event) => {
    if (event.type !== "checkpoint") return;
    checkpoints += 1;
    if (kills < 2 && checkpoints > kills * 20 + 5) {
      kills += 1;
      assert.equal(await current.stop("SIGKILL"), "SIGKILL");
      current = worker();
    }
  });
  assert.equal(kills, 2);
  assert.equal(last.type, "complete", JSON.stringify(last));
  assert.equal(last.attempt, 3);
  assert.deepEqual([last.result.rows, last.result.rejected], [count, 0]);
  const rows = rowsOf(last.result.file);
  assert.equal(rows.length, count);
  rows.forEach((row, i) => assert.deepEqual(row, { id: String(i), name: `n, ${i}`, note: `"quoted" \n line ${i} ü` }));
  const resumed = [];
  for await (const event of client.watch(jobId)) if (event.type === "log" && event.text.startsWith("resuming")) resumed.push(event.text);
  assert.equal(resumed.length, 2, "each successor went on from a checkpoint");
  assert.deepEqual(readdirSync(path.join(engine.dir, "out")).filter((name) => name.includes(jobId)), [last.result.file]);
});

test("j7 a worker that was thought dead writes into nobody's rows", { timeout: 90_000 }, async () => {
  const count = 60_000;
  awkward("paused.csv", count);
  const first = worker();
  await offered();
  let second;
  const { last } = await run("paused.csv", (event) => {
    if (event.type === "checkpoint" && !second) {
      first.kill("SIGSTOP");
      second = worker();
    }
    // Awake again while its successor writes.
    if (event.type === "checkpoint" && event.attempt === 2) first.kill("SIGCONT");
  });
  assert.equal(last.type, "complete", JSON.stringify(last));
  assert.equal(last.attempt, 2);
  const rows = rowsOf(last.result.file);
  assert.equal(rows.length, count);
  rows.forEach((row, i) => assert.equal(row.id, String(i)));
  await until("the first worker learns that its lease is lost", () => /lease lost/.test(first.output));
});

test("j10 an import is cancelled in the middle", async () => {
  awkward("cancelled.csv", 60_000);
  worker();
  await offered();
  let asked;
  const { jobId, last } = await run("cancelled.csv", async (event, id) => {
    if (event.type === "checkpoint") asked ??= await client.cancel(id, { reason: "enough" });
  });
  assert.deepEqual([last.type, last.reason], ["cancelled", "enough"]);
  assert.equal((await client.get(jobId)).state, "CANCELLED");
});
