/**
 * `worker-bullmq.mjs REDIS WARM_UP JOBS`: jobs that report progress, 50 at a time, each report awaited. Writes `warm` after the
 * first jobs; the others wait until it is told to go. Writes `done` when the end of the last one is stored.
 */

import { once } from "node:events";
import { Worker } from "bullmq";

const [port, warmUp, jobs] = process.argv.slice(2).map(Number);
const go = once(process.stdin, "data");
let begun = 0;
let ended = 0;

const worker = new Worker("bench", async (job) => {
  begun += 1;
  if (begun > warmUp) await go;
  for (let i = 1; i <= job.data.reports; i += 1) await job.updateProgress((i * 100) / job.data.reports);
}, { connection: { host: "127.0.0.1", port }, concurrency: 50 });
worker.on("failed", (_, error) => { throw error; });
// Emitted once the end is stored. The process stays, so that its CPU time can still be read.
worker.on("completed", () => {
  ended += 1;
  if (ended === warmUp) console.log("warm");
  if (ended === warmUp + jobs) console.log("done");
});
