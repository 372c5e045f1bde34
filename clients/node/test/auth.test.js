/** An engine that asks who calls: workers and callers with tokens that end, change, and are somebody else's. */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { renameSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { Client, NotFound, TidegateError, Worker } from "tidegate";
import { Engine, quiet, scratch, until } from "./stack.js";

const config = path.join(scratch(), "tidegate.toml");
const keys = Object.fromEntries(["alice", "alice-2", "bob", "workers"].map((name) => [name, `tg_${randomBytes(32).toString("base64url")}`]));
let engine;

/** Lets these in. */
function configure(...names) {
  const entries = names.map((name) => {
    const scopes = name === "workers" ? ["engine:work"] : ["jobs:submit", "jobs:read", "jobs:control"];
    const sha256 = createHash("sha256").update(keys[name]).digest("hex");
    return `[[auth.api_key]]\nname = '${name}'\nsha256 = '${sha256}'\nsubject = '${name.split("-")[0]}'\nscopes = ${JSON.stringify(scopes)}\n`;
  });
  writeFileSync(`${config}.new`, `[auth]\nreload_seconds = 1\n${entries.join("")}`);
  renameSync(`${config}.new`, config);
}

before(async () => {
  configure(...Object.keys(keys));
  engine = await Engine.start(`--config=${config}`);
});
after(async () => {
  await engine?.stop();
});

test("each speaks for itself, with a token that may change", async (t) => {
  const client = (token) => {
    const made = new Client(engine.uri, { token });
    t.after(() => made.close());
    return made;
  };
  for (const token of [undefined, "x", `tg_${randomBytes(32).toString("base64url")}`]) {
    const refused = await client(token).list().catch((error) => error);
    assert.ok(refused instanceof TidegateError);
    assert.equal(refused.code, "UNAUTHENTICATED");
    assert.ok(!token || token === "x" || !`${refused.stack}`.includes(token));
  }
  let good = "alice";
  const [alice, bob] = [client(() => keys[good]), client(keys.bob)];
  let release;
  const worker = new Worker(engine.uri, { token: () => keys.workers, grace: 0, logger: quiet() }).kind("waits", async (ctx, input) => {
    await ctx.log("begun");
    await new Promise((go) => { release = go; });
    return input;
  });
  worker.run({ signals: false });
  t.after(() => worker.stop());
  await until("the kind is offered", async () => (await alice.kinds()).length === 1);
  const job = await alice.submit("waits", 7);
  assert.equal(job.owner, "alice");
  await assert.rejects(bob.get(job.jobId), NotFound);
  const events = alice.watch(job.jobId);
  const seen = [(await events.next()).value];
  await until("the job runs", () => release);
  good = "alice-2";
  // Taken back: the stream that was opened with the old key ends, and goes on with the new one.
  configure("alice-2", "bob", "workers");
  await until("the old key is refused", async () => (await client(keys.alice).get(job.jobId).catch((error) => error)).code === "UNAUTHENTICATED");
  release();
  for await (const event of events) seen.push(event);
  assert.deepEqual(seen.map(({ seq }) => seq), seen.map((_, n) => n + 1));
  assert.equal((await alice.get(job.jobId)).result, 7);
});
