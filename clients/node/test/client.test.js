/** Callers against a real engine, with a worker of this library behind it; and the package as others install it. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, Conflict, InvalidArgument, NotFound, TidegateError, Unavailable, Worker, WrongState } from "tidegate";
import { Engine, freePort, Proxy, quiet, until } from "./stack.js";

const here = path.join(import.meta.dirname, "..");
let engine;
let client;
let worker;
let release;

before(async () => {
  engine = await Engine.start("--log-events=64");
  client = new Client(engine.uri);
  worker = new Worker(engine.uri, { capacity: 8, grace: 0, logger: quiet() })
    .kind("count", { description: "Counts.", inputSchema: { type: "integer" }, example: 3 }, async (ctx, to) => {
      for (let i = 1; i <= to; i += 1) await ctx.log(`${i}`);
    })
    .kind("wait", async (ctx) => {
      await ctx.log("begun");
      await new Promise((go) => {
        release = go;
        ctx.signal.addEventListener("abort", go);
      });
    });
  worker.run({ signals: false });
  await until("both kinds are offered", async () => (await client.kinds()).length === 2);
});
after(async () => {
  await worker?.stop();
  client?.close();
  await engine?.stop();
});

async function all(watch) {
  const events = [];
  for await (const event of watch) events.push(event);
  return events;
}

test("a job from its submission to its deletion", async () => {
  const job = await client.submit("count", 3, { options: { delay: 50, maxAttempts: 2, retention: 60_000 } });
  assert.deepEqual([job.created, job.state, job.input, job.options.delay, job.options.maxAttempts], [true, "SCHEDULED", 3, 50, 2]);
  assert.ok(job.runAt > job.createdAt);
  const events = await all(client.watch(job.jobId));
  assert.deepEqual(events.map(({ type }) => type), ["state", "state", "state", "log", "log", "log", "complete"]);
  assert.deepEqual(events.map(({ seq }) => seq), [1, 2, 3, 4, 5, 6, 7]);
  const done = await client.get(job.jobId);
  assert.deepEqual([done.state, done.result, done.lastSeq], ["COMPLETED", null, 7]);
  assert.deepEqual((await all(client.watch(job.jobId, { cursor: events[4].cursor }))).map(({ seq }) => seq), [6, 7]);
  assert.deepEqual((await all(client.watch(job.jobId, { tail: 1 }))).map(({ seq }) => seq), [7]);
  assert.deepEqual(await all(client.watch(job.jobId, { cursor: events[6].cursor })), [], "nothing follows the end");
  await client.delete(job.jobId);
  await assert.rejects(client.get(job.jobId), NotFound);
});

test("lists go page by page", async () => {
  const submitted = [];
  for (let i = 0; i < 5; i += 1) submitted.unshift((await client.submit("count", 0)).jobId);
  const listed = [];
  for (let pageToken = ""; listed.length < 5;) {
    const page = await client.list({ pageSize: 2, pageToken, kind: "count" });
    listed.push(...page.jobs.map(({ jobId }) => jobId));
    pageToken = page.nextPageToken;
  }
  assert.deepEqual(listed.slice(0, 5), submitted);
  const offers = await client.kinds();
  assert.deepEqual(offers[0], { kind: "count", description: "Counts.", inputSchema: { type: "integer" }, example: 3, live: true });
});

test("refusals are typed, and say what was wrong", async () => {
  const unknown = await client.submit("nobody-runs-this").catch((error) => error);
  assert.ok(unknown instanceof InvalidArgument);
  assert.deepEqual([unknown.code, unknown.reason], ["INVALID_ARGUMENT", "UNKNOWN_KIND"]);
  assert.match(unknown.metadata.known, /count/);
  const options = await client.submit("count", 1, { options: { maxAttempts: 1_000 } }).catch((error) => error);
  assert.equal(options.fields[0].field, "options.max_attempts");
  await assert.rejects(client.submit("count", 1, { options: { maxAtempts: 2 } }), /no field maxAtempts/);
  await assert.rejects(client.submit("count", 1, { options: { delay: "1s" } }), TypeError);
  await assert.rejects(client.get("01890a5d-ac96-774b-bcce-b302099a8057"), NotFound);
  await assert.rejects(all(client.watch("01890a5d-ac96-774b-bcce-b302099a8057")), NotFound);
  const { jobId } = await client.submit("count", 0);
  await all(client.watch(jobId));
  const cancel = await client.cancel(jobId).catch((error) => error);
  assert.ok(cancel instanceof WrongState && cancel instanceof TidegateError);
  assert.equal(cancel.metadata.state, "COMPLETED");
  await assert.rejects(all(client.watch(jobId, { cursor: "nonsense" })), InvalidArgument);
});

test("j31 an idempotency key yields one job, and a conflict for another request", async () => {
  const key = { idempotencyKey: `key-${Math.random()}` };
  const jobs = await Promise.all(Array.from({ length: 20 }, () => client.submit("count", 1, key)));
  assert.equal(new Set(jobs.map(({ jobId }) => jobId)).size, 1);
  assert.equal(jobs.filter(({ created }) => created).length, 1);
  await assert.rejects(client.submit("count", 2, key), Conflict);
});

test("j34 a retry goes on with the log, and a watch goes on with the retry", async () => {
  const { jobId } = await client.submit("wait");
  for await (const event of client.watch(jobId)) if (event.type === "log") break;
  await client.cancel(jobId, { reason: "first" });
  const first = await all(client.watch(jobId));
  assert.equal(first.at(-1).type, "cancelled");
  await client.retry(jobId);
  const second = [];
  for await (const event of client.watch(jobId, { cursor: first.at(-1).cursor })) {
    second.push(event);
    if (event.type === "log") await client.cancel(jobId);
  }
  assert.equal(second[0].seq, first.at(-1).seq + 1);
  assert.equal(second.at(-1).type, "cancelled");
});

test("e39 leaving a watch ends the watch and not the job", async () => {
  const { jobId } = await client.submit("wait");
  for await (const event of client.watch(jobId)) if (event.type === "log") break;
  const stop = new AbortController();
  const watched = all(client.watch(jobId, { signal: stop.signal }));
  await sleep(50);
  stop.abort(new Error("seen enough"));
  await assert.rejects(watched, /seen enough/);
  assert.equal((await client.get(jobId)).state, "PROCESSING");
  release();
  assert.equal((await all(client.watch(jobId))).at(-1).type, "complete");
});

test("j5 a watch resumes by itself: each event once, whatever is cut", async () => {
  const proxy = await Proxy.start(engine.port);
  const through = new Client(proxy.uri);
  const { jobId } = await client.submit("wait");
  const seen = [];
  let cuts = 0;
  for await (const event of through.watch(jobId)) {
    seen.push(event.seq);
    if (cuts < 3) {
      cuts += 1;
      proxy.cut();
    }
    if (event.type === "log") release();
  }
  assert.equal(cuts, 3);
  assert.deepEqual(seen, seen.map((_, i) => i + 1));
  through.close();
  await proxy.stop();
});

test("e26 what the log no longer holds is announced, and so is another log's cursor", async () => {
  const { jobId } = await client.submit("count", 300);
  await until("the job has ended", async () => (await client.get(jobId)).finishedAt);
  for (const [cursor, reason] of [["", "trimmed"], ["2-another0", "reset"]]) {
    const [gap, next] = await all(client.watch(jobId, { cursor }));
    assert.deepEqual([gap.type, gap.from, gap.reason, gap.snapshot.state], ["gap", 1, reason, "COMPLETED"]);
    assert.equal(next.seq, gap.to + 1);
    const [resumed] = await all(client.watch(jobId, { cursor: gap.cursor }));
    assert.equal(resumed.seq, next.seq, "the gap's own cursor leads behind it");
  }
});

test("with several engines, one that is away costs nothing but time", async () => {
  for (let i = 0; i < 5; i += 1) {
    const several = new Client([`http://127.0.0.1:${await freePort()}`, engine.uri]);
    assert.ok((await several.kinds()).length > 0);
    several.close();
  }
  const nobody = new Client(`http://127.0.0.1:${await freePort()}`, { timeout: 1_000 });
  await assert.rejects(nobody.get("x"), Unavailable);
  nobody.close();
});

test("the packed package works outside the repository", () => {
  const outside = path.join(engine.dir, "outside");
  mkdirSync(path.join(outside, "node_modules"), { recursive: true });
  // Packed in a copy: while it lasts, a package in the making has protos of its own.
  const copy = path.join(engine.dir, "copy", "clients", "node");
  for (const name of ["src", "package.json"]) cpSync(path.join(here, name), path.join(copy, name), { recursive: true });
  cpSync(path.join(here, "../../proto"), path.join(engine.dir, "copy", "proto"), { recursive: true });
  const packed = JSON.parse(execFileSync("npm", ["pack", "--json", `--pack-destination=${outside}`], { cwd: copy, stdio: ["ignore", "pipe", "ignore"], encoding: "utf8" }));
  execFileSync("tar", ["-xzf", packed[0].filename, "-C", "node_modules"], { cwd: outside });
  execFileSync("mv", ["package", "tidegate"], { cwd: path.join(outside, "node_modules") });
  symlinkSync(path.join(here, "node_modules", "@grpc"), path.join(outside, "node_modules", "@grpc"));
  writeFileSync(path.join(outside, "try.mjs"), `import { Client } from "tidegate"; const c = new Client(${JSON.stringify(engine.uri)}); console.log((await c.kinds()).length); c.close();`);
  assert.equal(execFileSync(process.execPath, ["try.mjs"], { cwd: outside, encoding: "utf8" }).trim(), "2");
});
