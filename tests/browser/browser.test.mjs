/**
 * The console and the real `EventSource` against real processes: start, watch, reload, lose the network, cancel, fail.
 * What a card shows is compared with the log as the server streams it, read here by an independent parser.
 */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { createParser } from 'eventsource-parser';
import { launch, openPage } from './browser.mjs';
import { startStack, until } from './stack.mjs';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

/** Runs a test with a stack and a page of its own; a failure prints what the processes said. */
function withConsole(name, options, body) {
  test(name, async () => {
    const { page, finish } = await openPage(browser, options);
    let stack;
    try {
      stack = await startStack(options.stack);
      const answer = await page.goto(stack.base);
      assert.match(answer.headers()['content-security-policy'], /^default-src 'self'/, 'the policy that the page must live with');
      await page.getByTestId('start').and(page.locator(':enabled')).waitFor();
      await body({ stack, page });
      await finish();
    } catch (error) {
      console.error(stack?.report());
      throw error;
    } finally {
      await page.context().close();
      await stack?.stop();
    }
  });
}

/** Starts a job through the console's JSON editor and returns its id. */
async function start(page, input, kind = 'demo') {
  const known = await page.getByTestId('job-card').evaluateAll((cards) => cards.map((card) => card.dataset.jobId));
  await page.getByTestId('kind').selectOption(kind);
  if (await page.getByTestId('input-json').isHidden()) await page.getByTestId('input-mode').click();
  await page.getByTestId('input-json').fill(JSON.stringify(input));
  await page.getByTestId('start').click();
  return until('a new card', () => page.getByTestId('job-card').evaluateAll((cards, old) => cards.map((card) => card.dataset.jobId).find((id) => !old.includes(id)), known));
}

const cardOf = (page, jobId) => page.locator(`[data-testid=job-card][data-job-id="${jobId}"]`);
const data = (card) => card.evaluate((element) => ({ ...element.dataset }));
const reaches = (card, status) => until(`the card says ${status}`, async () => (await data(card)).status === status);
const ends = (card, status) => until(`the card has ended ${status}`, async () => {
  const shown = await data(card);
  return shown.status === status && shown.wire === 'ended';
});
const comesTo = (card, seq) => until(`event ${seq} is shown`, async () => Number((await data(card)).seq) >= seq);

async function streamBytes(stack, jobId, cursor = '') {
  const response = await fetch(`${stack.base}/api/progress/${jobId}${cursor && `?lastEventId=${cursor}`}`, { signal: AbortSignal.timeout(30_000) });
  return { status: response.status, bytes: new Uint8Array(await response.arrayBuffer()) };
}

/** Parses a stream in pieces of `size` bytes. */
function parse(bytes, size = bytes.length) {
  const events = [];
  const parser = createParser({ onEvent: (event) => events.push(event), onRetry: (retry) => events.push({ retry }) });
  const decoder = new TextDecoder();
  for (let at = 0; at < bytes.length; at += size) parser.feed(decoder.decode(bytes.subarray(at, at + size), { stream: true }));
  return events;
}

/** The card shows the finished job's whole log: every event once, in order, and each line as the server has it. */
async function showsTheWholeLog(stack, card) {
  const { jobId, first, seq, events } = await data(card);
  const stored = parse((await streamBytes(stack, jobId)).bytes).filter(({ id }) => id);
  assert.deepEqual(stored.map(({ id }) => Number.parseInt(id, 10)), stored.map((_, index) => index + 1), 'the log is numbered without a hole');
  assert.deepEqual({ first, seq, events }, { first: '1', seq: String(stored.length), events: String(stored.length) }, 'the card saw each event once');
  const text = (value) => (typeof value === 'string' ? value : `${value.source ? `${value.source}  ` : ''}${value.text}`);
  const expected = stored.filter(({ event }) => event === 'log').map(({ id, data: json }) => [Number.parseInt(id, 10), text(JSON.parse(json))]);
  const shown = await card.locator('.line').evaluateAll((lines) => lines.map((line) => [Number(line.dataset.seq), line.querySelector('.t').textContent]));
  assert.deepEqual(shown, expected, 'the lines are the log');
  assert.ok(expected.length > 0, 'a log without lines proves nothing');
  return stored;
}

withConsole('a demo job is started from the form and watched to its end', { stack: { allInOne: true } }, async ({ stack, page }) => {
  await page.getByTestId('kind').selectOption('demo');
  await page.getByTestId('field-steps').fill('8');
  await page.getByTestId('field-seconds').fill('2');
  await page.getByTestId('start').click();
  const card = page.getByTestId('job-card');
  const bar = card.getByRole('progressbar');
  await until('the bar moves', async () => Number(await bar.getAttribute('aria-valuenow')) > 0);
  await ends(card, 'COMPLETED');
  assert.equal(await bar.getAttribute('aria-valuenow'), '100');
  assert.match(await card.getByTestId('outcome').textContent(), /Success!/);
  assert.equal(await card.getByTestId('chart').count(), 1, 'the chart event is drawn');
  await showsTheWholeLog(stack, card);
});

withConsole('a reload half-way shows the full log again', {}, async ({ stack, page }) => {
  const jobId = await start(page, { steps: 20, seconds: 6 });
  await comesTo(cardOf(page, jobId), 12);
  await page.reload();
  const card = cardOf(page, jobId);
  await comesTo(card, 12);
  assert.equal((await data(card)).status, 'PROCESSING', 'the reload was half-way');
  await ends(card, 'COMPLETED');
  await showsTheWholeLog(stack, card);
});

withConsole('e19_six_jobs_share_five_streams', {}, async ({ stack, page }) => {
  const jobs = [];
  for (let n = 0; n < 6; n += 1) jobs.push(await start(page, { steps: 60, seconds: n === 0 ? 60 : 9 }));
  const wires = () => page.getByTestId('job-card').evaluateAll((cards) => cards.map((card) => card.dataset.wire).sort());
  await until('five are live and one waits', async () => (await wires()).join() === 'live,live,live,live,live,waiting');
  const waiting = page.locator('[data-testid=job-card][data-wire=waiting]');
  assert.match(await waiting.getByTestId('connection').textContent(), /already live/);
  await cardOf(page, jobs[0]).getByTestId('cancel').click();
  await ends(cardOf(page, jobs[0]), 'CANCELLED');
  for (const jobId of jobs.slice(1)) {
    await ends(cardOf(page, jobId), 'COMPLETED');
    await showsTheWholeLog(stack, cardOf(page, jobId));
  }
});

for (const signal of ['SIGKILL', 'SIGTERM']) {
  const tolerated = [/Failed to load resource/, /net::ERR_/];
  withConsole(`a gateway that goes away by ${signal} and comes back leaves no hole`, { tolerated }, async ({ stack, page }) => {
    const card = cardOf(page, await start(page, { steps: 40, seconds: 10 }));
    await comesTo(card, 8);
    await stack.gateway.stop(signal);
    await until('the card says that it is offline', async () => /Offline.*reconnecting… \(\d+ s\)/.test(await card.getByTestId('connection').textContent()));
    await until('the page says so too', async () => /Offline, reconnecting… \(\d+ s\)/.test(await page.getByTestId('global-status').textContent()));
    const before = Number((await data(card)).seq);
    await stack.gateway.start();
    await until('the card is live again', async () => (await data(card)).wire === 'live');
    await until('the page says so too', async () => (await page.getByTestId('global-status').getAttribute('data-state')) === 'live');
    assert.equal(await card.getByTestId('connection').isHidden(), true);
    await comesTo(card, before + 3);
    await ends(card, 'COMPLETED');
    await showsTheWholeLog(stack, card);
  });
}

withConsole('an engine that is killed and comes back leaves no hole', { tolerated: [/Failed to load resource/] }, async ({ stack, page }) => {
  const card = cardOf(page, await start(page, { steps: 60, seconds: 9 }));
  await comesTo(card, 20);
  await stack.engine.stop('SIGKILL');
  await until('the page says that the engine is away', async () => (await page.getByTestId('global-status').getAttribute('data-state')) === 'offline');
  await stack.engine.start();
  await ends(card, 'COMPLETED');
  await showsTheWholeLog(stack, card);
  await until('the page says so too', async () => (await page.getByTestId('global-status').getAttribute('data-state')) === 'live');
});

withConsole('e36_a_flood_of_lines_is_bounded_and_followed', {}, async ({ page }) => {
  const card = cardOf(page, await start(page, { steps: 2100, seconds: 0, customEvery: 0 }));
  await ends(card, 'COMPLETED');
  assert.equal(await card.locator('.line').count(), 2000);
  assert.match(await card.getByTestId('log-count').textContent(), /last 2,000 of 2,100 lines/);
  const log = card.getByTestId('log');
  const atEnd = () => log.evaluate((box) => box.scrollHeight - box.scrollTop - box.clientHeight < 2);
  await until('the last line is in sight', atEnd);
  await log.evaluate((box) => box.scrollTo(0, 0));
  await card.getByTestId('to-end').click();
  await until('the last line is in sight again', atEnd);
});

withConsole('a running job is cancelled and stays cancelled', {}, async ({ stack, page }) => {
  const card = cardOf(page, await start(page, { steps: 100, seconds: 100 }));
  await reaches(card, 'PROCESSING');
  await comesTo(card, 5);
  await card.getByTestId('cancel').click();
  await ends(card, 'CANCELLED');
  assert.match(await card.getByTestId('outcome').textContent(), /Cancelled by .*cancelled in the console/);
  await showsTheWholeLog(stack, card);
  await card.getByTestId('delete').click();
  await card.getByTestId('delete').click();
  await card.waitFor({ state: 'detached' });
  await page.getByTestId('empty-state').waitFor();
});

withConsole('a job that fails says why, and its retry goes on in the same log', {}, async ({ stack, page }) => {
  const jobId = await start(page, { steps: 4, seconds: 2, failAt: 2 });
  const card = cardOf(page, jobId);
  await ends(card, 'FAILED');
  assert.match(await card.getByTestId('outcome').textContent(), /step 2 failed.*demo_failure/s);
  const failedAt = Number((await data(card)).seq);
  await card.getByTestId('retry').click();
  await ends(card, 'COMPLETED');
  assert.ok(Number((await data(card)).seq) > failedAt);
  assert.match(await card.getByTestId('attempt').textContent(), /2/);
  await showsTheWholeLog(stack, card);
  // The failure now lies in the middle of the log: a replay must not take it for the end.
  await page.reload();
  await ends(cardOf(page, jobId), 'COMPLETED');
  await showsTheWholeLog(stack, cardOf(page, jobId));
});

withConsole('input is checked before it is sent, and refusals are shown', { tolerated: [/status of 4\d\d/] }, async ({ stack, page }) => {
  await page.getByTestId('kind').selectOption('demo');
  await page.getByTestId('input-mode').click();
  for (const [text, complaint] of [['{"steps": 4', /not valid JSON/], ['{"steps": "four"}', /steps must be an integer/], ['[]', /must be a JSON object/]]) {
    await page.getByTestId('input-json').fill(text);
    await page.getByTestId('start').click();
    assert.match(await page.getByTestId('form-error').textContent(), complaint);
  }
  assert.deepEqual((await (await fetch(`${stack.base}/api/jobs`)).json()).jobs, [], 'nothing was sent');
  const refusal = await page.evaluate(async () => {
    const { submitJob, ProblemError } = await import('/client.js');
    return submitJob('no-such-kind').catch((error) => [error instanceof ProblemError, error.slug]);
  });
  assert.deepEqual(refusal, [true, 'unknown-kind']);
});

withConsole('hostile data stays text', {}, async ({ page }) => {
  const hostile = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>';
  const card = cardOf(page, await start(page, { steps: 1, seconds: 0, result: hostile }));
  await ends(card, 'COMPLETED');
  assert.ok((await card.getByTestId('outcome').textContent()).includes(hostile));
  assert.equal(await page.locator('#jobs img, #jobs script').count(), 0);
  assert.equal(await page.title(), 'Tidegate');
});

withConsole('e34_a_finished_job_does_not_make_eventsource_loop', {}, async ({ stack, page }) => {
  const card = cardOf(page, await start(page, { steps: 3, seconds: 0 }));
  await ends(card, 'COMPLETED');
  const stored = await showsTheWholeLog(stack, card);
  const { jobId } = await data(card);
  await card.getByTestId('dismiss').click(); // The console's own streams stay out of the count.
  const requests = [];
  page.on('response', (response) => response.url().includes('/api/progress/') && requests.push(response.status()));
  const watch = (url) => page.evaluate((address) => new Promise((resolve) => {
    const source = new EventSource(address);
    const seen = { names: [], cursor: '', errors: 0 };
    for (const name of ['complete', 'log', 'progress', 'state', 'checkpoint', 'chart']) {
      source.addEventListener(name, (event) => { seen.names.push(name); seen.cursor = event.lastEventId; });
    }
    // CLOSED is final by the standard: nothing comes after it.
    source.onerror = () => { seen.errors += 1; if (source.readyState === EventSource.CLOSED) resolve(seen); };
  }), url);
  const whole = await watch(`${stack.base}/api/progress/${jobId}`);
  assert.equal(whole.names.length, stored.length);
  assert.equal(whole.names.at(-1), 'complete');
  assert.equal(whole.cursor, stored.at(-1).id);
  assert.deepEqual(requests, [200, 204], 'the log, then the reconnect with the terminal cursor');
  const resumed = await watch(`${stack.base}/api/progress/${jobId}?lastEventId=${whole.cursor}`);
  assert.deepEqual(resumed, { names: [], cursor: '', errors: 1 });
  assert.deepEqual(requests, [200, 204, 204]);
});

withConsole('e60_a_stream_cut_into_single_bytes_parses_alike', {}, async ({ stack, page }) => {
  const card = cardOf(page, await start(page, { steps: 5, seconds: 0.5, customEvery: 2, result: { text: 'Größe — 潮 🌊' } }));
  await ends(card, 'COMPLETED');
  const stored = await showsTheWholeLog(stack, card);
  const { jobId } = await data(card);
  const { bytes } = await streamBytes(stack, jobId);
  const whole = parse(bytes);
  assert.deepEqual(parse(bytes, 1), whole);
  assert.deepEqual(whole.slice(0, 2).map(({ retry, event }) => retry ?? event), [2000, 'connected']);
  assert.equal(whole.at(-1).event, 'complete');
  // Resumed at every cursor, the stream is exactly what follows it.
  for (const [index, { id }] of stored.entries()) {
    const { status, bytes: rest } = await streamBytes(stack, jobId, id);
    if (index === stored.length - 1) assert.equal(status, 204);
    else assert.deepEqual(parse(rest).filter((event) => event.id), stored.slice(index + 1));
  }
});

withConsole('a job is started and cancelled with the keyboard alone', {}, async ({ page }) => {
  const focused = () => page.evaluate(() => document.activeElement?.dataset?.testid ?? '');
  const tabTo = async (testid, key = 'Tab') => {
    for (let presses = 0; presses < 60; presses += 1) {
      if ((await focused()) === testid) return;
      await page.keyboard.press(key);
    }
    assert.fail(`${testid} cannot be reached by ${key}`);
  };
  await tabTo('kind');
  await page.keyboard.type('demo');
  await tabTo('field-seconds');
  await page.keyboard.press('Control+a');
  await page.keyboard.type('100');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, 'none', 'the focus is visible');
  await tabTo('start');
  await page.keyboard.press('Enter');
  const card = page.getByTestId('job-card');
  await reaches(card, 'PROCESSING');
  await tabTo('cancel');
  await page.keyboard.press('Enter');
  await ends(card, 'CANCELLED');
  await until('the end is announced', async () => /Cancelled/.test(await page.getByTestId('announcer').textContent()));
});

withConsole('the API page shows every operation and type of the document, and loads nothing from elsewhere', {}, async ({ stack, page }) => {
  const requested = [];
  page.on('request', (request) => requested.push(new URL(request.url()).origin));
  const api = await (await fetch(`${stack.base}/openapi.json`)).json();
  await page.goto(`${stack.base}/docs#followJob`);
  const shown = page.getByTestId('operation');
  await shown.first().waitFor();
  const ids = Object.values(api.paths).flatMap((item) => Object.values(item).map((operation) => operation.operationId));
  assert.deepEqual((await shown.evaluateAll((all) => all.map((one) => one.id))).sort(), ids.sort());
  assert.ok(await page.locator('#followJob').isVisible());
  for (const name of Object.keys(api.components.schemas)) assert.equal(await page.locator(`#type-${name}`).count(), 1, name);
  const dead = await page.evaluate(() => [...document.querySelectorAll('a[href^="#"]')].map((link) => link.hash.slice(1)).filter((id) => !document.getElementById(id)));
  assert.deepEqual(dead, [], 'links within the page lead somewhere');
  await page.getByRole('link', { name: 'Problems', exact: true }).click();
  await page.getByRole('link', { name: 'job-not-found', exact: true }).click();
  await page.getByRole('heading', { name: 'job-not-found' }).waitFor();
  assert.deepEqual([...new Set(requested)], [stack.base], 'every file comes from this gateway');
});
