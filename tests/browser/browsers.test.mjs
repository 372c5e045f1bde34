/**
 * What has to hold in every browser, in Chromium and in Firefox: many streams in one tab, over HTTP/1.1 and over TLS; and
 * in Firefox the console from start to cancellation, which browser.test.mjs tries in Chromium more thoroughly.
 */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, openPage } from './browser.mjs';
import { launchFirefox } from './firefox.mjs';
import { startStack, until } from './stack.mjs';

const TOGETHER = 20;
const LONG_MS = 90_000;

const browsers = {};
before(async () => {
  const chromium = await launch();
  browsers.Chromium = {
    openPage: (options) => openPage(chromium, { ignoreHTTPSErrors: true, ...options }),
    close: () => chromium.close(),
  };
  browsers.Firefox = await launchFirefox();
});
after(() => Promise.all(Object.values(browsers).map((browser) => browser.close())));

/** Runs a test with a stack and a page of its own; a failure prints what the processes said. */
function withPage(name, browser, stackOptions, body) {
  test(`${name} (${browser})`, async () => {
    const stack = await startStack({ capacity: TOGETHER, ...stackOptions });
    // Browsers complain of streams that break off, which here they do on purpose.
    const { page, finish } = await browsers[browser].openPage({ tolerated: [/Failed to load resource/, /net::ERR_/, /can.t establish a connection|was interrupted/] });
    try {
      await body({ stack, page });
      await finish();
    } catch (error) {
      console.error(stack.report());
      await finish().catch(() => {});
      throw error;
    } finally {
      await stack.stop();
    }
  });
}

/** Starts jobs that go on, four events a second each, until they are cancelled. */
async function startJobs(stack) {
  const submit = async () => {
    const { status, json } = await stack.call('POST', '/api/jobs', { kind: 'demo', input: { steps: 4000, seconds: 1000 } });
    assert.equal(status, 201, JSON.stringify(json));
    return json.jobId;
  };
  return Promise.all(Array.from({ length: TOGETHER }, submit));
}

async function cancelAll(stack, jobs) {
  const answers = await Promise.all(jobs.map((jobId) => stack.call('POST', `/api/jobs/${jobId}/cancel`)));
  assert.deepEqual(answers.map(({ status }) => status), jobs.map(() => 202));
}

/** In the page: opens an EventSource for each address; `tab` is what they have seen. */
function openSources(addresses) {
  globalThis.tab = addresses.map((address) => {
    const source = new EventSource(address);
    const seen = { source, connects: 0, cursors: [], ends: 0 };
    source.addEventListener('open', () => { seen.connects += 1; });
    const ended = ['complete', 'failed', 'cancelled'];
    for (const name of ['state', 'progress', 'log', 'checkpoint', 'chart', 'gap', ...ended]) {
      source.addEventListener(name, (event) => {
        // On a connection of several jobs each event says whose it is.
        const { jobId, cursor } = JSON.parse(event.data);
        seen.cursors.push([jobId ?? address, cursor ?? event.lastEventId]);
        if (ended.includes(name)) seen.ends += 1;
      });
    }
    return seen;
  });
}

const tab = (page) => page.evaluate(() => globalThis.tab.map(({ source, ...seen }) => ({ ...seen, state: source.readyState })));
const protocol = (page) => page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol);
const CONNECTING = 0, OPEN = 1, CLOSED = 2;

/** Every event of the job was seen once and in order, up to the last one that the server knows. */
async function sawEverything(stack, jobId, cursors) {
  const { json: job } = await stack.call('GET', `/api/jobs/${jobId}`);
  assert.equal(job.status, 'CANCELLED');
  assert.deepEqual(cursors.map((cursor) => Number.parseInt(cursor, 10)), cursors.map((_, n) => n + 1));
  assert.equal(cursors.at(-1), job.cursor);
}

for (const browser of ['Chromium', 'Firefox']) {
  withPage('e19_twenty_streams_in_one_tab_over_tls_and_http2', browser, { allInOne: true, tls: true }, async ({ stack, page }) => {
    await page.goto(`${stack.base}/style.css`);
    assert.equal(await protocol(page), 'h2');
    const jobs = await startJobs(stack);
    await page.evaluate(openSources, jobs.map((jobId) => `/api/progress/${jobId}`));
    await until('all are live at once', async () => (await tab(page)).every(({ state, cursors }) => state === OPEN && cursors.length >= 8), LONG_MS);
    await cancelAll(stack, jobs);
    await until('all have ended', async () => (await tab(page)).every(({ ends, state }) => ends === 1 && state === CLOSED), LONG_MS);
    for (const [n, { connects, cursors }] of (await tab(page)).entries()) {
      assert.equal(connects, 1);
      await sawEverything(stack, jobs[n], cursors.map(([, cursor]) => cursor));
    }
  });

  withPage('e19_over_http1_the_seventh_stream_waits_and_one_connection_carries_twenty_jobs', browser, { allInOne: true }, async ({ stack, page }) => {
    await page.goto(`${stack.base}/style.css`);
    assert.equal(await protocol(page), 'http/1.1');
    const jobs = await startJobs(stack);
    await page.evaluate(openSources, jobs.map((jobId) => `/api/progress/${jobId}`));
    const states = async (state) => (await tab(page)).filter((seen) => seen.state === state).length;
    await until('six are open', async () => (await states(OPEN)) === 6, LONG_MS);
    assert.equal(await states(CONNECTING), TOGETHER - 6);
    await page.evaluate(() => globalThis.tab.find(({ source }) => source.readyState === 1).source.close());
    await until('the seventh takes the place of one that left', async () => (await tab(page)).filter(({ connects }) => connects > 0).length === 7, LONG_MS);
    assert.deepEqual([await states(OPEN), await states(CLOSED)], [6, 1]);
    await page.evaluate(() => { for (const { source } of globalThis.tab) source.close(); });

    await page.evaluate(openSources, [`/api/progress?${jobs.map((jobId) => `job=${jobId}`).join('&')}`]);
    const cursorsOf = async () => {
      const [{ cursors }] = await tab(page);
      return jobs.map((jobId) => cursors.filter(([id]) => id === jobId).map(([, cursor]) => cursor));
    };
    await until('all are live on one', async () => (await cursorsOf()).every((cursors) => cursors.length >= 8), LONG_MS);
    await cancelAll(stack, jobs);
    // After its end the browser comes back once with the cursors of all, and is told by 204 that it need not.
    await until('all have ended', async () => (await tab(page)).every(({ ends, state }) => ends === TOGETHER && state === CLOSED), LONG_MS);
    for (const [n, cursors] of (await cursorsOf()).entries()) await sawEverything(stack, jobs[n], cursors);
  });
}

withPage('the console starts, reloads half-way, loses the network and cancels', 'Firefox', {}, async ({ stack, page }) => {
  const card = () => page.evaluate(() => {
    const found = document.querySelector('[data-testid=job-card]');
    const text = (part) => found?.querySelector(`[data-testid=${part}]`)?.textContent ?? '';
    return { ...found?.dataset, connection: text('connection'), outcome: text('outcome'), lines: found?.querySelectorAll('.line').length };
  });
  const click = (part) => page.evaluate((name) => document.querySelector(`[data-testid=${name}]`).click(), part);
  const comesTo = (seq) => until(`event ${seq} is shown`, async () => Number((await card()).seq) >= seq, LONG_MS);
  const canStart = () => until('a job can be started', () => page.evaluate(() => document.querySelector('[data-testid=start]')?.disabled === false));

  await page.goto(stack.base);
  await canStart();
  await page.evaluate(() => {
    const part = (name) => document.querySelector(`[data-testid=${name}]`);
    const set = (name, value) => {
      part(name).value = value;
      for (const kind of ['input', 'change']) part(name).dispatchEvent(new Event(kind, { bubbles: true }));
    };
    set('kind', 'demo');
    part('input-mode').click();
    set('input-json', JSON.stringify({ steps: 4000, seconds: 1000 }));
    part('start').click();
  });
  await comesTo(12);
  await page.reload();
  await canStart();
  await comesTo(16);
  assert.deepEqual([(await card()).status, (await card()).first], ['PROCESSING', '1'], 'the whole log is there again');

  await stack.gateway.stop('SIGKILL');
  await until('the card says that it is offline', async () => /Offline.*reconnecting/.test((await card()).connection));
  const before = Number((await card()).seq);
  await stack.gateway.start();
  await until('the card is live again', async () => (await card()).wire === 'live', LONG_MS);
  await comesTo(before + 4);

  await click('cancel');
  await until('the card has ended', async () => (await card()).status === 'CANCELLED' && (await card()).wire === 'ended', LONG_MS);
  const { jobId, first, seq, events, outcome, lines } = await card();
  const { json: job } = await stack.call('GET', `/api/jobs/${jobId}`);
  assert.deepEqual([first, seq, events], ['1', String(Number.parseInt(job.cursor, 10)), seq], 'each event once');
  assert.match(outcome, /Cancelled by .*cancelled in the console/);
  assert.ok(lines > 0);
});
