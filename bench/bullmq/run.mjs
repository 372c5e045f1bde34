/**
 * Throughput of Tidegate beside BullMQ: the same jobs, on the same redis-server, in alternating rounds.
 *
 *     npm install && npm start -- [--jobs 3000] [--reports 10] [--rounds 3] [--only TEXT]
 *
 * after `npm ci` in clients/node and `cargo build --release -p job-engine --bin job-engine -p tidegate-worker --example bench`.
 *
 * `--only Rust` runs but those systems whose names contain the text.
 *
 * A round: a redis-server that is emptied, a worker that runs 50 jobs at a time (and an engine), and some jobs to warm up.
 * Then, measured apart: all jobs are submitted, 50 at once, one call a job, while the worker holds the first fifty; and
 * the worker is told to go, until it knows that the end of the last job is stored. CPU is that of every process, from
 * /proc. Neither system saves to the disk; nothing is coalesced: after the clock has stopped, every progress report is
 * counted in the log, or the round fails.
 *
 * What each stores for a report: BullMQ one XADD to the queue's stream of events and one HSET in the job, in one script
 * a report. Tidegate one XADD to the job's own log, numbered, and the job's state with each commit; reports that arrive
 * while a commit is under way share the next one. Both answer a report only when it is stored.
 */

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Queue } from "bullmq";
import { Redis } from "ioredis";
import { Client } from "../../clients/node/src/index.js";
import { freePort } from "../../clients/node/test/stack.js";

const HERE = import.meta.dirname;
const RELEASE = path.resolve(process.env.TIDEGATE_BIN_DIR ?? path.join(HERE, "../../target/release"));
const TICKS_PER_SECOND = 100; // USER_HZ, the same on every Linux
const WARM_UP = 300;
const AT_ONCE = 50;

const { values } = parseArgs({ options: { jobs: { type: "string", default: "3000" }, reports: { type: "string", default: "10" }, rounds: { type: "string", default: "3" }, only: { type: "string", default: "" } } });
const [jobs, reports, rounds] = [values.jobs, values.reports, values.rounds].map(Number);

const sum = (object) => Object.values(object).reduce((a, b) => a + b);

const alive = new Set();
process.on("exit", () => { for (const child of alive) child.kill("SIGKILL"); });

/** Starts a process whose lines can be waited for. */
function start(command, ...args) {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"], env: { ...process.env, TIDEGATE_LOG: "warn", RUST_LOG: "warn" } });
  alive.add(child);
  const lines = new Set();
  child.stdout.setEncoding("utf8").on("data", (text) => { for (const line of text.split("\n")) lines.add(line); });
  child.on("error", (error) => { throw error; });
  child.on("exit", (code) => {
    alive.delete(child);
    if (code) throw new Error(`${command} ended with ${code}`);
  });
  child.said = (line) => until(`${command} says ${line}`, () => lines.has(line), 1);
  return child;
}

async function until(what, condition, pause = 20) {
  for (const deadline = Date.now() + 120_000; Date.now() < deadline; await sleep(pause)) {
    try {
      if (await condition()) return;
    } catch (error) {
      if (Date.now() + pause >= deadline) throw error;
    }
  }
  throw new Error(`still not so: ${what}`);
}

/** The seconds of CPU that a process has used. */
function cpu({ pid }) {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Calls `work` with each number below `count`, 50 at once; returns the results. */
async function each(count, work) {
  const results = [];
  let next = 0;
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let i = next++; i < count; i = next++) results[i] = await work(i);
  }));
  return results;
}

/** What `work` takes: seconds, and seconds of CPU of each process. */
async function timed(processes, work) {
  const all = { ...processes, submitter: process };
  const before = Object.fromEntries(Object.entries(all).map(([name, child]) => [name, cpu(child)]));
  const begun = performance.now();
  const value = await work();
  const seconds = (performance.now() - begun) / 1000;
  return { value, seconds, cpu: Object.fromEntries(Object.entries(all).map(([name, child]) => [name, cpu(child) - before[name]])) };
}

/** Measures one round: `processes` by name, the worker among them; `submit` submits one job. */
async function measure(processes, submit) {
  const { worker } = processes;
  await each(WARM_UP, submit);
  await worker.said("warm");
  const submitting = await timed(processes, () => each(jobs, submit));
  const running = await timed(processes, async () => {
    worker.stdin.write("go\n");
    await worker.said("done");
  });
  return { submitting, running, submitted: submitting.value };
}

async function bullmq(redis, port) {
  const worker = start(process.execPath, path.join(HERE, "worker-bullmq.mjs"), String(port), String(WARM_UP), String(jobs));
  // As many events are kept as there are, so that they can be counted: ten thousand unless told otherwise.
  const queue = new Queue("bench", { connection: { host: "127.0.0.1", port }, streams: { events: { maxLen: 10_000_000 } } });
  await queue.waitUntilReady();
  const result = await measure({ redis: redis.process, worker }, () => queue.add("bench", { reports }));
  const events = await redis.client.xrange("bull:bench:events", "-", "+");
  result.stored = events.filter(([, fields]) => fields[fields.indexOf("event") + 1] === "progress").length - WARM_UP * reports;
  await queue.close();
  worker.kill();
  return result;
}

const tidegate = (startWorker) => async (redis, port) => {
  const [grpc, admin] = [await freePort(), await freePort()];
  const engine = start(path.join(RELEASE, "job-engine"), `--grpc-listen=127.0.0.1:${grpc}`, `--admin-listen=127.0.0.1:${admin}`,
    `--redis=redis://127.0.0.1:${port}`, "--progress-interval-ms=0");
  const uri = `http://127.0.0.1:${grpc}`;
  await until("the engine is ready", async () => (await fetch(`http://127.0.0.1:${admin}/readyz`)).ok);
  const worker = startWorker(uri, String(WARM_UP), String(jobs));
  const client = new Client(uri);
  await until("the worker is there", async () => (await client.kinds()).some(({ kind, live }) => kind === "bench" && live));
  const result = await measure({ redis: redis.process, engine, worker }, () => client.submit("bench", { reports }));
  const counts = await each(jobs, async (i) => {
    let count = 0;
    for await (const { type } of client.watch(result.submitted[i].jobId)) count += Number(type === "progress");
    return count;
  });
  result.stored = sum(counts);
  client.close();
  worker.kill("SIGKILL");
  engine.kill();
  await new Promise((gone) => engine.once("exit", gone));
  return result;
};

const systems = {
  "BullMQ": bullmq,
  "Tidegate, Node worker": tidegate((...args) => start(process.execPath, path.join(HERE, "worker-tidegate.mjs"), ...args)),
  "Tidegate, Node, each awaited": tidegate((...args) => start(process.execPath, path.join(HERE, "worker-tidegate.mjs"), ...args, "each")),
  "Tidegate, Rust worker": tidegate((...args) => start(path.join(RELEASE, "examples", "bench"), ...args)),
};

const port = await freePort();
const redis = { process: start("redis-server", "--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning") };
redis.client = new Redis({ port, host: "127.0.0.1", lazyConnect: true, retryStrategy: () => 50 });
redis.client.on("error", () => {}); // not up yet
await until("redis-server answers", () => redis.client.ping());

const chosen = Object.entries(systems).filter(([name]) => name.includes(values.only));
if (chosen.length === 0) throw new Error(`none of the systems is called ${values.only}: ${Object.keys(systems).join(", ")}`);
const results = Object.fromEntries(chosen.map(([name]) => [name, []]));
console.log(`${jobs} jobs of ${reports} progress reports, ${AT_ONCE} at a time; ${rounds} rounds; ${cpus().length} cores\n`);
for (let round = 1; round <= rounds; round += 1) {
  for (const [name, run] of chosen) {
    await redis.client.flushall();
    const result = await run(redis, port);
    if (result.stored !== jobs * reports) throw new Error(`${name}: ${result.stored} progress events are stored instead of ${jobs * reports}`);
    results[name].push(result);
    for (const [what, { seconds, cpu }] of Object.entries({ submitting: result.submitting, running: result.running })) {
      const shares = Object.entries(cpu).filter(([, used]) => used >= 0.01).map(([part, used]) => `${part} ${used.toFixed(2)}`).join(", ");
      console.log(`round ${round}  ${name.padEnd(29)} ${what.padEnd(10)} ${seconds.toFixed(2).padStart(6)} s, CPU s: ${shares}`);
    }
  }
}

/** The middle one of an odd number, the lower middle of an even one. */
const median = (numbers) => numbers.toSorted((a, b) => a - b)[(numbers.length - 1) >> 1];
const row = (...cells) => console.log(cells.map((cell, i) => (i === 0 ? cell.padEnd(30) : cell.padStart(15))).join(""));
const times = (a, b) => `${(a / b).toFixed(2)} x`;
console.log();
row("median of the rounds", "submitted/s", "CPU ms a job", "run: jobs/s", "progress/s", "beside BullMQ", "CPU ms a job", "beside BullMQ");
let first;
for (const [name, list] of Object.entries(results)) {
  const of = (what) => ({ rate: median(list.map((r) => jobs / r[what].seconds)), used: median(list.map((r) => (sum(r[what].cpu) * 1000) / jobs)) });
  const [submitting, running] = [of("submitting"), of("running")];
  first ??= running;
  row(name, submitting.rate.toFixed(0), submitting.used.toFixed(2), running.rate.toFixed(0), (running.rate * reports).toFixed(0),
    times(running.rate, first.rate), running.used.toFixed(2), times(running.used, first.used));
}
redis.client.disconnect();
redis.process.kill();
