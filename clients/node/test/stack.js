/**
 * Real processes for the tests: an engine with its log in a scratch directory, and workers in processes of their own.
 * Everything is waited for by its condition, and dead when `stop` returns; a missing binary fails at once, by name.
 */

import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";

const BIN_DIR = path.resolve(process.env.TIDEGATE_BIN_DIR ?? path.join(import.meta.dirname, "../../../target/debug"));
const PATIENCE_MS = 30_000;

/** Waits until `condition` returns something truthy, and returns it. */
export async function until(what, condition, patience = PATIENCE_MS) {
  const deadline = Date.now() + patience;
  let last;
  do {
    try {
      const value = await condition();
      if (value) return value;
      last = undefined;
    } catch (error) {
      last = error;
    }
    await new Promise((next) => setTimeout(next, 20));
  } while (Date.now() < deadline);
  throw new Error(`still not so after ${patience} ms: ${what}`, { cause: last });
}

/** A port below those that the kernel gives to outgoing connections: it stays free while its server is being restarted. */
export async function freePort() {
  for (;;) {
    const port = randomInt(10_000, 32_000);
    const server = createServer().listen(port, "127.0.0.1");
    const free = await new Promise((told) => server.once("listening", () => told(true)).once("error", () => told(false)));
    if (!free) continue;
    await new Promise((closed) => server.close(closed));
    return port;
  }
}

/** Children that run, and directories in use: none outlives this process, however it ends short of SIGKILL. */
export const alive = new Set();
const dirs = new Set();
process.on("exit", () => {
  for (const child of alive) child.kill("SIGKILL");
  for (const dir of dirs) rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));

/** A new directory. */
export function scratch() {
  const dir = mkdtempSync(path.join(tmpdir(), "tidegate-node-"));
  dirs.add(dir);
  return dir;
}

/** Starts a process that keeps the end of its output, in `output`. */
export function start(command, args, env = {}) {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TIDEGATE_") && !name.startsWith("NODE_")));
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...clean, ...env } });
  alive.add(child);
  child.output = "";
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding("utf8").on("data", (text) => { child.output = (child.output + text).slice(-16_000); });
  child.ended = new Promise((done) => {
    child.once("error", (error) => done(String(error)));
    child.once("exit", (code, signal) => done(code ?? signal));
  });
  child.ended.then(() => alive.delete(child));
  child.stop = async (signal = "SIGTERM") => {
    child.kill(signal);
    return child.ended;
  };
  return child;
}

/** An engine that can be killed and started again on the same log and port. */
export class Engine {
  #child = null;
  #dir = scratch();
  #flags;

  constructor(flags = []) {
    this.#flags = flags;
  }

  /** Starts an engine; it forgets a silent worker after three seconds. */
  static async start(...flags) {
    const engine = new Engine(flags);
    [engine.port, engine.adminPort] = [await freePort(), await freePort()];
    engine.uri = `http://127.0.0.1:${engine.port}`;
    await engine.start();
    return engine;
  }

  /** A directory that is gone after `stop`. */
  get dir() {
    return this.#dir;
  }

  async start() {
    const binary = path.join(BIN_DIR, "job-engine");
    if (!existsSync(binary)) throw new Error(`${binary} is missing: build the workspace first, or set TIDEGATE_BIN_DIR`);
    const child = start(binary, [`--grpc-listen=127.0.0.1:${this.port}`, `--admin-listen=127.0.0.1:${this.adminPort}`,
      `--data-dir=${this.#dir}/log`, "--lease-seconds=3", "--cancel-grace-seconds=3", ...this.#flags]);
    this.#child = child;
    let ended;
    child.ended.then((how) => { ended = how; });
    await until("the engine is ready", async () => {
      if (ended !== undefined) throw new Error(`job-engine ended with ${ended}:\n${child.output}`);
      return (await fetch(`http://127.0.0.1:${this.adminPort}/readyz`)).ok;
    });
  }

  async kill(signal = "SIGKILL") {
    await this.#child?.stop(signal);
    this.#child = null;
  }

  async stop() {
    await this.kill();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/** A TCP proxy whose connections can be cut, and which can refuse new ones. */
export class Proxy {
  #sockets = new Set();
  #server;
  refuses = false;

  static async start(port) {
    const proxy = new Proxy();
    const { connect } = await import("node:net");
    proxy.#server = createServer((near) => {
      if (proxy.refuses) return near.destroy();
      const far = connect(port, "127.0.0.1");
      for (const [from, to] of [[near, far], [far, near]]) {
        proxy.#sockets.add(from);
        from.on("close", () => { proxy.#sockets.delete(from); to.destroy(); }).on("error", () => to.destroy());
        from.pipe(to);
      }
    }).listen(0, "127.0.0.1");
    await new Promise((ready) => proxy.#server.once("listening", ready));
    proxy.uri = `http://127.0.0.1:${proxy.#server.address().port}`;
    return proxy;
  }

  cut() {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async stop() {
    this.refuses = true;
    this.cut();
    await new Promise((closed) => this.#server.close(closed));
  }
}

/** A worker's logger that keeps its lines. */
export function quiet() {
  const lines = [];
  const keep = (line) => lines.push(line);
  return { lines, debug: keep, info: keep, warn: keep, error: keep };
}
