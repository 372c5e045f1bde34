/** The library against a real engine: what a handler sees when connections, engines and other workers misbehave. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, afterEach, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Cancelled, Client, JobFailed, JobReleased, LeaseLost, ReportRejected, ShuttingDown, Worker } from "tidegate";
import { Engine, freePort, Proxy, quiet, until } from "./stack.js";

let engine;
let client;
let workers = [];
let proxies = [];
let kinds = 0;

before(async () => {
  engine = await Engine.start();
  client = new Client(engine.uri);
});
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.stop()));
  await Promise.all(proxies.splice(0).map((proxy) => proxy.stop()));
});
after(async () => {
  client?.close();
  await engine?.stop();
});

/** Runs a worker that offers one kind, known to no other test, and returns both once the engine knows it. */
async function work(handler, { at = engine.uri, kind = `kind-${(kinds += 1)}`, ...options } = {}) {
  const logger = quiet();
  const worker = new Worker(at, { capacity: 1, grace: 0, logger, ...options }).kind(kind, { description: "A test's." }, handler);
  workers.push(worker);
  worker.run({ signals: false });
  await until("the worker is connected", () => worker.status === "connected");
  return { worker, kind, logger };
}

async function proxied() {
  const proxy = await Proxy.start(engine.port);
  proxies.push(proxy);
  return proxy;
}

async function eventsOf(jobId, options) {
  const events = [];
  for await (const event of client.watch(jobId, options)) events.push(event);
  events.forEach(({ seq }, i) => assert.equal(seq, events[0].seq + i, "no hole and no double"));
  return events;
}

const logsOf = (events) => events.filter(({ type }) => type === "log").map(({ text }) => text);
const types = (events) => events.map(({ type }) => type);
const aborted = (signal) => signal.aborted || once(signal, "abort");

test("everything that a job can say arrives as it was said", async () => {
  const { kind } = await work(async (ctx, input) => {
    ctx.log("hello", { level: "warn", source: "here" });
    ctx.progress({ percent: 250, rate: Number.NaN, done: 2 ** 53 - 1, total: 2n ** 60n, unit: "rows", eta: 1500, step: 1, steps: 2, message: "m" });
    await ctx.checkpoint("half", new Uint8Array([0, 255]));
    await ctx.custom("chart", { bars: [1, "ü", "\ud800"] });
    ctx.log("half a pair: \ud83d.");
    await ctx.flush();
    return { input, attempt: ctx.attempt, tenant: ctx.tenant, scheduledFor: ctx.scheduledFor };
  });
  const { jobId } = await client.submit(kind, { a: [1] });
  const events = await eventsOf(jobId);
  assert.deepEqual(types(events), ["state", "state", "log", "progress", "checkpoint", "custom", "log", "complete"]);
  const [, , log, { progress }, checkpoint, custom, pair, complete] = events;
  assert.deepEqual([log.level, log.source, log.text], ["warn", "here", "hello"]);
  assert.deepEqual(progress, { percent: 100, done: 2 ** 53 - 1, total: 2n ** 60n, unit: "rows", eta: 1500, step: 1, steps: 2, message: "m", stepName: "" });
  assert.deepEqual([checkpoint.name, checkpoint.size], ["half", 2]);
  assert.deepEqual([custom.name, custom.value], ["chart", { bars: [1, "ü", "\ud800"] }]);
  assert.equal(pair.text, "half a pair: \ufffd.");
  assert.deepEqual(complete.result, { input: { a: [1] }, attempt: 1, tenant: "default", scheduledFor: null });
});

test("failures are final, retryable, or of a sort that nobody foresaw", async () => {
  const { kind, logger } = await work((ctx, how) => {
    if (how === "final") throw new JobFailed("not_found", "no such thing");
    if (how === "again") throw new JobFailed("busy", `attempt ${ctx.attempt}`, { retryable: true });
    if (how === "torn") throw new JobFailed("torn", "half a pair: \ud83d");
    if (how === "bug") throw new TypeError("undefined is not a function");
    if (how === "result") return { toJSON() { throw new Error("no"); } };
    throw how;
  });
  const fate = async (how, options) => {
    const { jobId } = await client.submit(kind, how, { options });
    const { code, message, retryable, attempt } = (await eventsOf(jobId)).at(-1);
    return [code, message, retryable, attempt];
  };
  const twice = { maxAttempts: 2, backoff: 10 };
  assert.deepEqual(await fate("final", twice), ["not_found", "no such thing", false, 1]);
  assert.deepEqual(await fate("again", twice), ["busy", "attempt 2", true, 2]);
  assert.deepEqual(await fate("bug"), ["error", "undefined is not a function", true, 1]);
  assert.deepEqual(await fate("torn"), ["torn", "half a pair: \ufffd", false, 1]);
  assert.deepEqual((await fate("result"))[0], "result_invalid");
  assert.deepEqual(await fate(7), ["error", "7", true, 1]);
  assert.ok(logger.lines.some((line) => line.includes("worker.test.js")), "the stack is in the worker's log");
});

test("a job that is given back goes on elsewhere and counts as no failure", async () => {
  const { kind } = await work(async (ctx) => {
    if (ctx.attempt > 1) return String(ctx.resume?.data);
    await ctx.checkpoint("at", "7");
    throw new JobReleased("not here");
  });
  const { jobId } = await client.submit(kind);
  assert.equal((await eventsOf(jobId)).at(-1).result, "7");
});

test("j10 a cancellation reaches the handler as a signal and from every call but log", async () => {
  let seen;
  const { kind } = await work(async (ctx) => {
    await ctx.log("begun");
    await aborted(ctx.signal);
    const refusals = await Promise.allSettled([ctx.progress({ percent: 1 }), ctx.checkpoint("c", ""), ctx.custom("x", 1), ctx.flush().then(() => ctx.progress({}))]);
    await ctx.log("cleaning up");
    seen = { reason: ctx.signal.reason, refusals: refusals.map(({ reason }) => reason) };
    return "finished all the same";
  });
  const { jobId } = await client.submit(kind);
  for await (const event of client.watch(jobId)) if (event.type === "log") break;
  const asked = await client.cancel(jobId, { reason: "enough" });
  assert.equal(asked.cancelRequested.reason, "enough");
  const events = await eventsOf(jobId);
  assert.deepEqual(logsOf(events), ["begun", "cleaning up"]);
  assert.equal(events.at(-1).type, "cancelled");
  assert.ok(seen.reason instanceof Cancelled);
  assert.equal(seen.reason.reason, "enough");
  assert.ok(seen.reason.deadline > new Date());
  assert.deepEqual(seen.refusals.map((reason) => reason instanceof Cancelled), [true, true, true, true]);
});

test("j10 a call that waits when the cancellation comes ends with it", async () => {
  const proxy = await proxied();
  let outcome;
  const { kind } = await work(async (ctx) => {
    await ctx.log("begun");
    proxy.refuses = true;
    proxy.cut();
    const call = ctx.checkpoint("c", "x");
    await client.cancel(ctx.jobId);
    proxy.refuses = false;
    outcome = await call.catch((error) => error);
    throw outcome;
  }, { at: proxy.uri });
  const { jobId } = await client.submit(kind);
  assert.equal((await eventsOf(jobId)).at(-1).type, "cancelled");
  await until("the handler is told", () => outcome !== undefined);
  assert.ok(outcome instanceof Cancelled, String(outcome));
});

test("j11 a handler that ignores its cancellation is cut off and its slot freed", async () => {
  let late;
  const { kind } = await work(async (ctx, input) => {
    if (input === "quick") return "done";
    await ctx.log("begun");
    await new Promise((go) => { late = async () => { go(); return ctx.log("too late").catch((error) => error); }; });
    return "never";
  });
  const { jobId } = await client.submit(kind, "deaf");
  for await (const event of client.watch(jobId)) if (event.type === "log") break;
  await client.cancel(jobId);
  assert.equal((await eventsOf(jobId)).at(-1).type, "cancelled");
  const { jobId: next } = await client.submit(kind, "quick");
  assert.equal((await eventsOf(next)).at(-1).result, "done");
  assert.ok((await late()) instanceof LeaseLost);
  assert.deepEqual(logsOf(await eventsOf(jobId)), ["begun"]);
});

test("j5 a stream that is cut again and again loses and doubles nothing, and the job stays here", async () => {
  const proxy = await proxied();
  const { kind } = await work(async (ctx) => {
    for (let i = 0; i < 200; i += 1) {
      ctx.log(`line ${i}`);
      if (i % 10 === 0) await ctx.checkpoint("at", String(i));
      if (i % 70 === 35) proxy.cut();
    }
    return ctx.attempt;
  }, { at: proxy.uri });
  const { jobId } = await client.submit(kind);
  const events = await eventsOf(jobId);
  assert.deepEqual(logsOf(events), Array.from({ length: 200 }, (_, i) => `line ${i}`));
  assert.equal(events.filter(({ type }) => type === "checkpoint").length, 20);
  assert.equal(events.at(-1).result, 1);
});

test("j4 an engine that is killed while jobs run loses nothing that was said", { timeout: 60_000 }, async () => {
  let told = 0;
  let enough = false;
  const { kind } = await work(async (ctx) => {
    for (; !enough; told += 1) {
      await ctx.log(`line ${told}`);
      await sleep(1);
    }
    await ctx.checkpoint("end", "");
    return ctx.attempt;
  });
  const { jobId } = await client.submit(kind);
  const watched = eventsOf(jobId);
  for (const signal of ["SIGKILL", "SIGTERM"]) {
    const before = told;
    await until("the job goes on", () => told > before);
    await engine.kill(signal);
    await engine.start();
  }
  enough = true;
  const events = await watched;
  assert.deepEqual(logsOf(events), Array.from({ length: told }, (_, i) => `line ${i}`));
  assert.equal(events.at(-1).type, "complete");
  assert.equal(events.at(-1).result, 1, "it kept its lease");
});

test("j1 a worker that was away too long is told, and nothing that it says is stored", async () => {
  const proxy = await proxied();
  let outcome;
  const { kind } = await work(async (ctx) => {
    await ctx.checkpoint("at", "1");
    proxy.refuses = true;
    proxy.cut();
    const late = ctx.checkpoint("at", "2");
    await aborted(ctx.signal);
    outcome = [ctx.signal.reason, await late.catch((error) => error), await ctx.log("late").catch((error) => error)];
    return "late";
  }, { at: proxy.uri });
  const { jobId } = await client.submit(kind);
  await until("the first worker is cut off", () => proxy.refuses);
  await work((ctx) => [ctx.attempt, String(ctx.resume?.data)], { kind });
  const events = await eventsOf(jobId);
  assert.deepEqual(events.at(-1).result, [2, "1"]);
  proxy.refuses = false;
  await until("the first worker is told", () => outcome !== undefined);
  assert.deepEqual(outcome.map((error) => error instanceof LeaseLost), [true, true, true]);
  assert.equal((await client.get(jobId)).lastSeq, events.at(-1).seq);
});

test("j36 an engine that drains is left, and the next one taken", async () => {
  const other = await Engine.start();
  const atOther = new Client(other.uri);
  const { kind, worker } = await work((ctx) => ctx.jobId, { at: [engine.uri, other.uri] });
  const engines = new Map([[engine, client], [other, atOther]]);
  const offering = () => Promise.any([...engines].map(async ([where, at]) => {
    if (!(await at.kinds()).some((offer) => offer.kind === kind)) throw new Error("not here");
    return where;
  }));
  const first = await until("an engine knows the kind", offering);
  const second = first === engine ? other : engine;
  await first.kill("SIGTERM");
  await until("the other engine knows the kind", async () => (await engines.get(second).kinds()).some((offer) => offer.kind === kind));
  const { jobId } = await engines.get(second).submit(kind);
  await until("it works for the other", async () => (await engines.get(second).get(jobId)).state === "COMPLETED");
  assert.equal(worker.status, "connected");
  await worker.stop();
  await first.start();
  atOther.close();
  await other.stop();
});

test("j37 what is too large is refused before it is sent, and the job goes on", async () => {
  const { kind } = await work(async (ctx, input) => {
    if (input === "result") return "x".repeat(300_000);
    const refusals = [];
    for (const call of [ctx.checkpoint("c", Buffer.alloc(65_537)), ctx.custom("big", "x".repeat(65_536)), ctx.custom("progress", 1)]) {
      await call.catch((error) => refusals.push(error));
    }
    assert.ok(refusals.every((error) => error instanceof ReportRejected));
    await ctx.log("ü".repeat(20_000));
    assert.throws(() => ctx.progress({ percnt: 1 }), TypeError);
    return refusals.map(({ message }) => message);
  });
  const { jobId } = await client.submit(kind);
  const events = await eventsOf(jobId);
  assert.deepEqual(types(events), ["state", "state", "log", "complete"]);
  assert.match(events[3].result[0], /a checkpoint has 65537 bytes; the engine takes 65536/);
  assert.ok(Buffer.byteLength(events[2].text) <= 16_384 && events[2].text.endsWith("ü …[cut]"));
  const { jobId: large } = await client.submit(kind, "result");
  assert.equal((await eventsOf(large)).at(-1).code, "result_too_large");
});

test("j37 a web server at the engine's address is said in words", async () => {
  const server = createServer((_, response) => response.end("<html>hello</html>")).listen(0, "127.0.0.1");
  await once(server, "listening");
  const logger = quiet();
  const uri = `http://127.0.0.1:${server.address().port}`;
  const worker = new Worker(uri, { logger }).kind("k", () => null);
  worker.run({ signals: false });
  await until("it is said", () => logger.lines.some((line) => line.includes(uri) && line.includes("gRPC")));
  await worker.stop();
  server.close();
});

test("an engine that is away is tried again; another one is taken meanwhile", async () => {
  const { worker } = await work(() => null, { at: `http://127.0.0.1:${await freePort()}, ${engine.uri}` });
  assert.equal(worker.status, "connected");
});

test("a worker that leaves lets its jobs save themselves, and another goes on", async () => {
  const { kind, worker } = await work(async (ctx) => {
    if (ctx.resume) return ctx.resume.data.toString();
    await ctx.log("begun");
    await aborted(ctx.signal);
    assert.ok(ctx.signal.reason instanceof ShuttingDown);
    await ctx.checkpoint("at", "as far as this");
    throw ctx.signal.reason;
  });
  const { jobId } = await client.submit(kind);
  for await (const event of client.watch(jobId)) if (event.type === "log") break;
  const begun = Date.now();
  await worker.stop();
  assert.ok(Date.now() - begun < 5_000, "a job that obeys holds nobody up");
  await work((ctx) => ctx.resume?.data.toString(), { kind });
  assert.equal((await eventsOf(jobId)).at(-1).result, "as far as this");
});

test("e36 a flood of log lines that is awaited arrives whole", async () => {
  const { kind } = await work(async (ctx) => {
    for (let i = 0; i < 5_000; i += 1) await ctx.log(`${i}`);
  });
  const { jobId } = await client.submit(kind);
  assert.deepEqual(logsOf(await eventsOf(jobId)), Array.from({ length: 5_000 }, (_, i) => `${i}`));
});

test("j40 a flood that is not awaited is bounded, and what is missing is said in its place", async () => {
  const { kind } = await work(async (ctx) => {
    for (let i = 0; i < 100_000; i += 1) ctx.log(`${i}`);
    await sleep(0);
  });
  const { jobId } = await client.submit(kind);
  const logs = logsOf(await eventsOf(jobId));
  const dropped = logs.map((text) => Number(/^(\d+) log lines were dropped/.exec(text)?.[1] ?? 0)).reduce((sum, n) => sum + n);
  assert.ok(logs.length < 2_000, `${logs.length}`);
  assert.equal(logs.filter((text) => /^\d+$/.test(text)).length + dropped, 100_000);
});

test("a description that makes no worker is refused", () => {
  assert.throws(() => new Worker("127.0.0.1:50051"), /no engine address/);
  assert.throws(() => new Worker([]), /at least one engine/);
  assert.throws(() => new Worker(engine.uri, { capacity: 0 }), RangeError);
  assert.throws(() => new Worker(engine.uri).kind("Bad", () => null), /cannot name a kind/);
  assert.throws(() => new Worker(engine.uri).kind("k", () => null).kind("k", () => null), /offered twice/);
});
