/**
 * Real processes for the browser tests: an engine on a data directory of its own, a gateway, a worker.
 *
 * Every process listens on free loopback ports, is waited for by its condition (never by a sleep), keeps the end of its
 * output for the report of a failing test, and is dead when `stop` returns. A missing binary fails at once, by name.
 */

import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import { join, resolve } from 'node:path';
import { alive, freePort, scratch, until } from '../../clients/node/test/stack.js';

export { until };

const BIN_DIR = resolve(process.env.TIDEGATE_BIN_DIR ?? join(import.meta.dirname, '../../target/debug'));
const KEPT_OUTPUT = 16_000;

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

/** A certificate for this machine that nobody else has signed, in cert.pem and key.pem. */
function selfSigned(dir) {
  const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1';
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '7', '-subj', '/CN=localhost', '-addext', names];
  execFileSync('openssl', [...args, '-keyout', join(dir, 'key.pem'), '-out', join(dir, 'cert.pem')], { stdio: 'pipe' });
}

/** A request with an answer in JSON, also of a server whose certificate is `ca`; `fetch` cannot be told to trust one. */
function call(method, url, { body, headers, ca } = {}) {
  return new Promise((answered, failed) => {
    const options = { method, headers: { 'content-type': 'application/json', ...headers }, ca, timeout: 10_000 };
    const request = (url.startsWith('https:') ? https : http).request(url, options, async (response) => {
      let text = '';
      for await (const part of response.setEncoding('utf8')) text += part;
      answered({ status: response.statusCode, json: text && JSON.parse(text) });
    });
    request.on('error', failed).on('timeout', () => request.destroy(new Error(`${method} ${url}: no answer`)));
    request.end(body && JSON.stringify(body));
  });
}

/**
 * Starts the parts as three processes, or all in one.
 * @param {{allInOne?: boolean, capacity?: number, tls?: boolean, auth?: {files: Record<string, string>, token: string}}} [options] `auth`: tidegate.toml
 *   and what it names, edge.key and workers.key among them; and what may ask for the kinds
 */
export async function startStack({ allInOne = false, capacity = 8, tls = false, auth } = {}) {
  const dir = scratch();
  for (const [name, text] of Object.entries(auth?.files ?? {})) await writeFile(join(dir, name), text);
  const [configured, delegate, work] = auth
    ? [['--config', 'tidegate.toml'], ['--engine-token-file', 'edge.key'], ['--token-file', 'workers.key']].map(([flag, name]) => [flag, join(dir, name)])
    : [[], [], []];
  if (tls) selfSigned(dir);
  const encrypted = tls ? ['--tls-cert', join(dir, 'cert.pem'), '--tls-key', join(dir, 'key.pem')] : [];
  const ca = tls ? await readFile(join(dir, 'cert.pem')) : undefined;
  const headers = auth ? { authorization: `Bearer ${auth.token}` } : {};
  const [edge, grpc, admin, engineAdmin] = (await Promise.all([0, 0, 0, 0].map(freePort)));
  const at = (port) => `127.0.0.1:${port}`;
  const base = `${tls ? 'https' : 'http'}://${at(edge)}`;
  const ready = answers(`http://${at(admin)}/readyz`);
  const demoIsLive = async () => (await call('GET', `${base}/api/kinds`, { headers, ca })).json.kinds.some(({ kind, live }) => kind === 'demo' && live);
  const engine = new Process('job-engine', ['--grpc-listen', at(grpc), '--admin-listen', at(engineAdmin), '--data-dir', join(dir, 'log'), ...configured], answers(`http://${at(engineAdmin)}/readyz`));
  const gateway = new Process('edge-gateway', ['--listen', at(edge), '--admin-listen', at(admin), '--engine', `http://${at(grpc)}`, ...encrypted, ...configured, ...delegate], ready);
  const worker = new Process('tidegate-worker', ['--engine', `http://${at(grpc)}`, '--data-dir', join(dir, 'work'), '--import-dir', dir, '--capacity', String(capacity), ...work], demoIsLive);
  const whole = new Process('tidegate', ['--listen', at(edge), '--grpc-listen', at(grpc), '--admin-listen', at(admin), '--engine-admin-listen', at(engineAdmin), '--data-dir', dir, '--workers', String(capacity), ...encrypted, ...configured], async () => (await ready()) && demoIsLive());
  const processes = allInOne ? [whole] : [engine, gateway, worker];

  const stack = {
    base,
    /** Calls the API from outside the browser. */
    call: (method, path, body) => call(method, base + path, { body, headers, ca }),
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
