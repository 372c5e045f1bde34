/**
 * Firefox for the tests: Debian's own, by WebDriver BiDi (W3C), which it speaks itself; one browser a file, one fresh
 * user context a test. A page watches itself as in browser.mjs.
 *
 * Only what the tests need. The library that drives Chromium would need a newer Firefox than the extended support release.
 */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import WebSocket from 'ws';

const EXECUTABLE = process.env.FIREFOX ?? '/usr/bin/firefox-esr';
const START_MS = 60_000;
const COMMAND_MS = 60_000;

export async function launchFirefox() {
  if (!existsSync(EXECUTABLE)) throw new Error(`${EXECUTABLE} is missing: install Debian's firefox-esr, or set FIREFOX`);
  const home = await mkdtemp(join(tmpdir(), 'tidegate-firefox-'));
  const args = ['--headless', '--no-remote', '--remote-debugging-port', '0', '--profile', home];
  const child = spawn(EXECUTABLE, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { PATH: process.env.PATH, HOME: home } });
  const kill = () => child.kill('SIGKILL');
  process.on('exit', kill);
  const exited = new Promise((done) => child.once('exit', done));
  let socket;
  const close = async () => {
    socket?.terminate();
    kill();
    await exited;
    process.off('exit', kill);
    await rm(home, { recursive: true, force: true, maxRetries: 10, retryDelay: 200 }); // its children write a little longer
  };
  try {
    socket = new WebSocket(`${await address(child)}/session`);
    await new Promise((open, failed) => socket.once('open', open).once('error', failed));
    const session = new Session(socket);
    await session.send('session.new', { capabilities: { alwaysMatch: { acceptInsecureCerts: true } } });
    await session.send('session.subscribe', { events: ['log.entryAdded'] });
    return { openPage: (options) => openPage(session, options), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Where it listens, which it says on its standard error. */
function address(child) {
  return new Promise((found, failed) => {
    let output = '';
    const timer = setTimeout(() => failed(new Error(`Firefox does not listen:\n${output}`)), START_MS);
    child.once('error', failed);
    child.once('exit', (code) => failed(new Error(`Firefox ended (${code}):\n${output}`)));
    child.stderr.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-16_000);
      const [, url] = /WebDriver BiDi listening on (ws:\S+)/.exec(output) ?? [];
      if (url) {
        clearTimeout(timer);
        found(url);
      }
    });
  });
}

/** Commands and their answers by number; what the browser says unasked goes to listeners. */
class Session {
  listeners = new Set();
  #waiting = new Map();
  #last = 0;

  constructor(socket) {
    this.socket = socket;
    socket.on('message', (text) => {
      const message = JSON.parse(text);
      if (message.type === 'event') for (const listener of this.listeners) listener(message);
      this.#waiting.get(message.id)?.(message);
    });
    socket.on('close', () => { for (const answer of this.#waiting.values()) answer({ type: 'error', message: 'Firefox went away' }); });
  }

  async send(method, params) {
    const id = (this.#last += 1);
    const answer = await new Promise((answered) => {
      this.#waiting.set(id, answered);
      setTimeout(answered, COMMAND_MS, { type: 'error', message: 'no answer' }).unref();
      this.socket.send(JSON.stringify({ id, method, params }));
    });
    this.#waiting.delete(id);
    if (answer.type !== 'success') throw new Error(`${method}: ${answer.message}`);
    return answer.result;
  }
}

async function openPage(session, { tolerated = [] } = {}) {
  const { userContext } = await session.send('browser.createUserContext', { acceptInsecureCerts: true });
  const report = () => addEventListener('securitypolicyviolation', (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
  await session.send('script.addPreloadScript', { functionDeclaration: String(report), userContexts: [userContext] });
  const { context } = await session.send('browsingContext.create', { type: 'tab', userContext });
  const complaints = [];
  const listen = ({ method, params }) => {
    if (method === 'log.entryAdded' && params.source.context === context && ['error', 'warn'].includes(params.level)) complaints.push(`${params.level}: ${params.text}`);
  };
  session.listeners.add(listen);
  const page = {
    goto: (url) => session.send('browsingContext.navigate', { context, url, wait: 'complete' }),
    reload: () => session.send('browsingContext.reload', { context, wait: 'complete' }),
    /** Runs a function in the page; what goes in and comes out is JSON. */
    async evaluate(body, argument = null) {
      const functionDeclaration = `async (text) => JSON.stringify(await (${body})(JSON.parse(text)))`;
      const args = [{ type: 'string', value: JSON.stringify(argument) }];
      const answer = await session.send('script.callFunction', { functionDeclaration, arguments: args, awaitPromise: true, target: { context } });
      if (answer.type !== 'success') throw new Error(answer.exceptionDetails.text);
      return answer.result.type === 'string' ? JSON.parse(answer.result.value) : undefined;
    },
  };
  return {
    page,
    async finish() {
      session.listeners.delete(listen);
      await session.send('browser.removeUserContext', { userContext });
      assert.deepEqual(complaints.filter((text) => !tolerated.some((pattern) => pattern.test(text))), [], 'the page complained');
    },
  };
}
