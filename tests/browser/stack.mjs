/**
 * Real processes for the browser tests: an engine on a data directory of its own, a gateway, a worker.
 *
 * Every process listens on free loopback ports, is waited for by its condition (never by a sleep), keeps the end of its
 * output for the report of a failing test, and is dead when `stop` returns. A missing binary fails at once, by name.
 */

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const BIN_DIR = resolve(process.env.TIDEGATE_BIN_DIR ?? join(import.meta.dirname, '../../target/debug'));
const READY_MS = 30_000;
const KEPT_OUTPUT = 16_000;

/** Waits until `condition` returns something truthy, and returns it. */
export async function until(what, condition, deadlineMs = READY_MS) {
  const deadline = Date.now() + deadlineMs;
  let last;
  do {
    try {
      const value = await condition();
      if (value) return value;
      last = undefined;
    } catch (error) {
      last = error;
    }
    await new Promise((next) => setTimeout(next, 40));
  } while (Date.now() < deadline);
  throw new Error(`still not so after ${deadlineMs} ms: ${what}`, { cause: last });
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((ready) => server.once('listening', ready));
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return port;
}

/** Children that run; none outlives this process, however it ends. */
const alive = new Set();
process.on('exit', () => { for (const child of alive) child.kill('SIGKILL'); });
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));

class Process {
  output = '';
  #child = null;
  #exited = Promise.resolve();

  constructor(name, args, ready) {
    Object.assign(this, { name, args, ready });
  }

  async start() {
    const path = join(BIN_DIR, this.name);
    if (!existsSync(path)) throw new Error(`${path} is missing: build the workspace first, or set TIDEGATE_BIN_DIR`);
    const child = spawn(path, this.args, { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env.PATH, RUST_LOG: process.env.RUST_LOG ?? 'info' } });
    this.#child = child;
    alive.add(child);
    child.once('exit', () => alive.delete(child));
    let ended = '';
    this.#exited = new Promise((done) => {
      child.once('error', (error) => done((ended = String(error))));
      child.once('exit', (code, signal) => done((ended = `exit ${code ?? signal}`)));
    });
    for (const pipe of [child.stdout, child.stderr]) {
      pipe.setEncoding('utf8').on('data', (text) => { this.output = (this.output + text).slice(-KEPT_OUTPUT); });
    }
    await until(`${this.name} is ready`, async () => ended || (await this.ready()));
    if (ended) throw new Error(`${this.name} ended while it was started (${ended}):\n${this.output}`);
  }

  /** Ends the process: politely by default, at once with SIGKILL. */
  async stop(signal = 'SIGTERM') {
    if (!this.#child) return;
    this.#child.kill(signal);
    const hard = setTimeout(() => this.#child.kill('SIGKILL'), 20_000);
    await this.#exited;
    clearTimeout(hard);
    this.#child = null;
  }
}

const answers = (url) => async () => (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;

/**
 * Starts the parts as three processes, or all in one.
 * @param {{allInOne?: boolean, capacity?: number, auth?: {files: Record<string, string>, token: string}}} [options] `auth`: tidegate.toml
 *   and what it names, edge.key and workers.key among them; and what may ask for the kinds
 */
export async function startStack({ allInOne = false, capacity = 8, auth } = {}) {
  const dir = await mkdtemp(join(tmpdir(), 'tidegate-browser-'));
  for (const [name, text] of Object.entries(auth?.files ?? {})) await writeFile(join(dir, name), text);
  const [configured, delegate, work] = auth
    ? [['--config', 'tidegate.toml'], ['--engine-token-file', 'edge.key'], ['--token-file', 'workers.key']].map(([flag, name]) => [flag, join(dir, name)])
    : [[], [], []];
  const headers = auth ? { authorization: `Bearer ${auth.token}` } : {};
  const [http, grpc, admin, engineAdmin] = (await Promise.all([0, 0, 0, 0].map(freePort)));
  const at = (port) => `127.0.0.1:${port}`;
  const base = `http://${at(http)}`;
  const ready = answers(`http://${at(admin)}/readyz`);
  const demoIsLive = async () => (await (await fetch(`${base}/api/kinds`, { headers })).json()).kinds.some(({ kind, live }) => kind === 'demo' && live);
  const engine = new Process('job-engine', ['--grpc-listen', at(grpc), '--admin-listen', at(engineAdmin), '--data-dir', join(dir, 'log'), ...configured], answers(`http://${at(engineAdmin)}/readyz`));
  const gateway = new Process('edge-gateway', ['--listen', at(http), '--admin-listen', at(admin), '--engine', `http://${at(grpc)}`, ...configured, ...delegate], ready);
  const worker = new Process('tidegate-worker', ['--engine', `http://${at(grpc)}`, '--data-dir', join(dir, 'work'), '--import-dir', dir, '--capacity', String(capacity), ...work], demoIsLive);
  const whole = new Process('tidegate', ['--listen', at(http), '--grpc-listen', at(grpc), '--admin-listen', at(admin), '--engine-admin-listen', at(engineAdmin), '--data-dir', dir, '--workers', String(capacity), ...configured], async () => (await ready()) && demoIsLive());
  const processes = allInOne ? [whole] : [engine, gateway, worker];

  const stack = {
    base,
    engine: allInOne ? whole : engine,
    gateway: allInOne ? whole : gateway,
    worker: allInOne ? whole : worker,
    async stop() {
      for (const part of processes.toReversed()) await part.stop('SIGKILL');
      await rm(dir, { recursive: true, force: true });
    },
    report() {
      return processes.map(({ name, output }) => `--- ${name}\n${output}`).join('\n');
    },
  };
  try {
    for (const part of processes) await part.start();
  } catch (error) {
    await stack.stop();
    throw error;
  }
  return stack;
}
