// buf, which knows of Tidegate nothing but what the server's reflection says, and the linter of the contract.

import assert from "node:assert/strict";
import { spawn, execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.join(here, "..", "..");
const binary = process.env.TIDEGATE_BIN ?? path.join(root, "target", "debug", "tidegate");
const scratch = mkdtempSync(path.join(tmpdir(), "tidegate-buf-"));
const run = promisify(execFile);
let server;
let grpc;

const buf = (...args) => run(path.join(here, "node_modules", ".bin", "buf"), args, { cwd: root, timeout: 60_000 });

/** Calls one method through reflection and returns its messages. */
async function call(method, request) {
  const { stdout } = await buf("curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", JSON.stringify(request),
    `http://${grpc}/tidegate.v1.JobService/${method}`);
  // buf prints one JSON object after the other, each on its own lines.
  return stdout.trim().split(/(?<=\})\s*(?=\{)/).filter(Boolean).map((text) => JSON.parse(text));
}

async function freePorts(count) {
  const listeners = await Promise.all(Array.from({ length: count }, () => new Promise((resolve) => {
    const listener = createServer().listen(0, "127.0.0.1", () => resolve(listener));
  })));
  return Promise.all(listeners.map((listener) => new Promise((resolve) => {
    const { port } = listener.address();
    listener.close(() => resolve(port));
  })));
}

before(async () => {
  assert.ok(existsSync(binary), `${binary} is missing: run cargo build --workspace, or the whole of tests/run`);
  const [http, grpcPort, gatewayAdmin, engineAdmin] = await freePorts(4);
  grpc = `127.0.0.1:${grpcPort}`;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TIDEGATE_")));
  server = spawn(binary, [`--listen=127.0.0.1:${http}`, `--grpc-listen=${grpc}`, `--admin-listen=127.0.0.1:${gatewayAdmin}`,
    `--engine-admin-listen=127.0.0.1:${engineAdmin}`, `--data-dir=${scratch}/data`], { env, stdio: ["ignore", "pipe", "pipe"] });
  await new Promise((resolve, reject) => {
    let output = "";
    const read = (chunk) => {
      output += chunk;
      // The banner is printed once everything is ready, the local worker too.
      if (output.includes(`http://127.0.0.1:${http}`)) resolve();
    };
    server.stdout.on("data", read);
    server.stderr.on("data", read);
    server.on("exit", (code) => reject(new Error(`tidegate ended with ${code}:\n${output}`)));
  });
}, { timeout: 60_000 });

after(async () => {
  if (server && server.exitCode === null) {
    server.removeAllListeners("exit");
    const gone = new Promise((resolve) => server.on("exit", resolve));
    server.kill("SIGTERM");
    await gone;
  }
  rmSync(scratch, { recursive: true, force: true });
});

test("the contract passes buf lint", async () => {
  await buf("lint");
});

test("reflection lists the services and their methods", async () => {
  const { stdout } = await buf("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods", `http://${grpc}`);
  for (const method of ["tidegate.v1.JobService/SubmitJob", "tidegate.v1.JobService/WatchJob", "tidegate.v1.WorkerService/Work", "tidegate.v1.ScheduleService/PutSchedule"]) {
    assert.ok(stdout.includes(method), `${method} is missing in:\n${stdout}`);
  }
});

test("a job is submitted and watched to its end", async () => {
  const [{ job }] = await call("SubmitJob", { kind: "demo", inputJson: '{"steps": 2, "seconds": 0.4}' });
  const messages = await call("WatchJob", { jobId: job.jobId });
  assert.equal(messages[0].opened.outcome, "CURSOR_OUTCOME_FRESH");
  const events = messages.filter((message) => message.event).map((message) => message.event);
  assert.deepEqual(events.map((event) => Number(event.seq)), events.map((_, index) => index + 1));
  assert.ok(events.at(-1).complete, JSON.stringify(events.at(-1)));

  const tail = await call("WatchJob", { jobId: job.jobId, cursor: `2-${job.epoch}` });
  assert.equal(tail[0].opened.outcome, "CURSOR_OUTCOME_EXACT");
  assert.equal(Number(tail[1].event.seq), 3);
});

test("a refusal is readable", async () => {
  await assert.rejects(call("GetJob", { jobId: "01890a5d-ac96-774b-bcce-b302099a8057" }), /not_found/);
});
