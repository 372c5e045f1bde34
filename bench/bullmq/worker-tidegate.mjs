/**
 * `worker-tidegate.mjs ENGINE WARM_UP JOBS [each]`: jobs that report progress, 50 at a time; with `each`, a report is made only
 * when the one before it is stored. Writes `warm` after the first jobs; the others wait until it is told to go. Writes
 * `done` when the end of the last one is stored.
 */

import { once } from "node:events";
import { Worker } from "../../clients/node/src/index.js";

const [engine, warmUp, jobs, each] = process.argv.slice(2);
const logger = { debug() {}, info() {}, warn: console.error, error: console.error };
const worker = new Worker(engine, { name: "bench", capacity: 50, coalesce: false, logger });
const go = once(process.stdin, "data");
let begun = 0;
let ended = 0;

worker.kind("bench", { example: { reports: 10 } }, async (ctx, { reports }) => {
  begun += 1;
  if (begun > warmUp) await go;
  for (let i = 1; i <= reports; i += 1) {
    await ctx.progress({ percent: (i * 100) / reports });
    if (each) await ctx.flush();
  }
  ended += 1;
  if (ended === Number(warmUp)) console.log("warm");
  // A worker stops when everything it said is stored.
  if (ended === Number(warmUp) + Number(jobs)) worker.stop().then(() => console.log("done"));
});
worker.run();
// The process stays, so that its CPU time can still be read.
setInterval(() => {}, 60_000);
