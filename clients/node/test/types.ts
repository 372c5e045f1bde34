// Checked by `tsc --strict`, never run: what a program in TypeScript sees.

import { Cancelled, Client, JobFailed, NotFound, Worker, type JobEvent } from "tidegate";

const worker = new Worker(["http://127.0.0.1:50051"], { capacity: 2, onStatus: (status) => status === "connected" });

worker.kind<{ path: string }>("thumbnails", { description: "Makes thumbnails.", example: { path: "a.png" } }, async (ctx, input) => {
  const path: string = input.path;
  const at: number = ctx.resume ? Number(ctx.resume.data) : 0;
  await ctx.progress({ percent: 5, done: 3n, eta: 1500 });
  ctx.log(path, { level: "warn", source: "decoder" });
  await ctx.checkpoint("at", new Uint8Array([at]));
  await ctx.custom("chart", { at });
  ctx.signal.addEventListener("abort", () => ctx.signal.reason instanceof Cancelled && ctx.signal.reason.by.length);
  if (at > 9) throw new JobFailed("too_far", "at is beyond 9", { retryable: true });
  // @ts-expect-error: progress has no such field
  await ctx.progress({ percnt: 5 });
  // @ts-expect-error: no such level
  ctx.log("x", { level: "loud" });
  return { path };
});
const running: Promise<void> = worker.run();

const client = new Client("http://127.0.0.1:50051", { caller: { tenant: "default", subject: "alice" } });
const job = await client.submit("thumbnails", { path: "a.png" }, { options: { maxAttempts: 3, delay: 1000 }, idempotencyKey: "k" });
const created: boolean = job.created;
const finished: Date | undefined = (await client.get(job.jobId)).finishedAt;

/** Every kind of event is told apart by its type. */
function show(event: JobEvent): string {
  switch (event.type) {
    case "progress": return `${event.progress.percent}`;
    case "log": return event.text;
    case "failed": return event.code;
    case "gap": return `${event.from}-${event.to} ${event.snapshot.state}`;
    case "complete": return JSON.stringify(event.result);
    // @ts-expect-error: there is no such event
    case "finish": return "";
    default: return event.cursor;
  }
}

try {
  for await (const event of client.watch(job.jobId, { cursor: "1-abc", signal: AbortSignal.timeout(1000) })) show(event);
} catch (error) {
  if (!(error instanceof NotFound)) throw error;
  const reason: string = error.reason;
  console.log(reason, created, finished);
}
await worker.stop();
await running;
// @ts-expect-error: a worker needs addresses
new Worker();
