#!/usr/bin/env node
/** The conformance worker of this library: runs the scripts that `tests/conformance` sends; its README is the contract. */

import { existsSync } from "node:fs";
import { setImmediate as breathe, setTimeout as sleep } from "node:timers/promises";
import { JobFailed, ReportRejected, Worker } from "tidegate";

/** @typedef {import("tidegate").JobContext} Context */
/** What ends a script, with the job's result. */
class Done {
  /** @param {unknown} result */
  constructor(result) {
    this.result = result;
  }
}

/** @param {Context} ctx @param {string} at @param {object} [more] */
function print(ctx, at, more = {}) {
  process.stdout.write(`${JSON.stringify({ job: ctx.jobId, attempt: ctx.attempt, at, ...more })}\n`);
}

/** Runs a call that the library or the engine may refuse. @param {Context} ctx @param {() => Promise<void>} call */
async function refusable(ctx, call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof ReportRejected)) throw error;
    print(ctx, "rejected", { message: error.message });
  }
}

/** @type {Record<string, (ctx: Context, argument: any) => unknown>} */
const steps = {
  progress: (ctx, { done, total, ...rest }) => ctx.progress({ ...rest, ...(done && { done: BigInt(done) }), ...(total && { total: BigInt(total) }) }),
  log: (ctx, { text, level = "INFO", source }) => ctx.log(text, { level: level.toLowerCase(), source }),
  checkpoint: (ctx, { name, base64 }) => refusable(ctx, () => ctx.checkpoint(name, Buffer.from(base64, "base64"))),
  custom: (ctx, { name, value }) => refusable(ctx, () => ctx.custom(name, value)),
  resumed: (ctx) => ctx.custom("resumed", {
    attempt: ctx.attempt,
    checkpoint: ctx.resume && { name: ctx.resume.name, base64: ctx.resume.data.toString("base64") },
  }),
  oversized(ctx, { checkpoint, custom, log, result }) {
    if (checkpoint !== undefined) return refusable(ctx, () => ctx.checkpoint("big", Buffer.alloc(checkpoint)));
    if (custom !== undefined) return refusable(ctx, () => ctx.custom("big", "x".repeat(custom)));
    if (log !== undefined) return ctx.log("x".repeat(log));
    return new Done("x".repeat(result));
  },
  print: (ctx, text) => print(ctx, "print", { text }),
  sleep: (ctx, ms) => sleep(ms, undefined, { signal: ctx.signal }),
  async await_file(ctx, path) {
    while (!existsSync(path)) await sleep(20, undefined, { signal: ctx.signal });
  },
  async wait_stop(ctx) {
    if (!ctx.signal.aborted) await new Promise((stop) => ctx.signal.addEventListener("abort", stop, { once: true }));
    print(ctx, "stopping");
    ctx.signal.throwIfAborted();
  },
  ignore_stop: (_ctx, ms) => sleep(ms),
  async busy(_ctx, ms) {
    // In slices: a handler that computes lets the library speak in between.
    for (const end = Date.now() + ms; Date.now() < end; await breathe()) {
      for (const slice = Date.now() + 10; Date.now() < slice;);
    }
  },
  async flood(ctx, { logs, bytes }) {
    for (let i = 0; i < logs; i += 1) await ctx.log(`${i} `.padEnd(bytes, "x"));
  },
  async progress_flood(ctx, n) {
    for (let done = 1; done <= n; done += 1) await ctx.progress({ done, total: n });
  },
  fail(_ctx, { code, message, retryable = false }) {
    throw new JobFailed(code, message, { retryable });
  },
  throw(_ctx, message) {
    throw new Error(message);
  },
  complete: (_ctx, result) => new Done(result),
};

/** @param {Context} ctx @param {{ steps: Record<string, any>[] }} input */
async function run(ctx, input) {
  print(ctx, "begin");
  try {
    for (const [[name, argument]] of input.steps.map((step) => Object.entries(step))) {
      if (!Object.hasOwn(steps, name)) throw new JobFailed("input_invalid", `there is no step ${name}`);
      const outcome = await steps[name](ctx, argument);
      if (outcome instanceof Done) return outcome.result;
    }
    return null;
  } finally {
    print(ctx, "end");
  }
}

const offer = {
  description: "Runs a script of the conformance suite.",
  inputSchema: { type: "object", required: ["steps"], properties: { steps: { type: "array", items: { type: "object" } } } },
  example: { steps: [{ log: { text: "hello" } }] },
};
const { TIDEGATE_ENGINE = "http://127.0.0.1:50051", TIDEGATE_CAPACITY = "4", TIDEGATE_GRACE_SECONDS = "5" } = process.env;
const worker = new Worker(TIDEGATE_ENGINE, { name: "conformance", capacity: Number(TIDEGATE_CAPACITY), grace: Number(TIDEGATE_GRACE_SECONDS) * 1000 });
await worker.kind("conformance", offer, run).run();
// A handler that does not listen would keep the process alive, although its job was given back.
process.exit();
