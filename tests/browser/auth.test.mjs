/** A gateway that asks who is there, in a real browser: the console's sign-in, and streams opened with tickets by the module. */

import assert from 'node:assert/strict';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { after, before, test } from 'node:test';
import { launch, openPage } from './browser.mjs';
import { startStack, until } from './stack.mjs';

const KEY = `tg_${randomBytes(32).toString('base64url')}`;
const SECRET = 'a browser test\'s secret of more than 32 bytes';
const [DELEGATE, WORK] = [0, 0].map(() => `tg_${randomBytes(32).toString('base64url')}`);
const apiKey = (key, name, scopes) => `
[[auth.api_key]]
name = "${name}"
sha256 = "${createHash('sha256').update(key).digest('hex')}"
subject = "${name}"
scopes = ${JSON.stringify(scopes)}
`;
const CONFIG = `
[auth]
secret_file = "edge.secret"
[auth.tickets]
first_use_seconds = 1
[[auth.issuer]]
issuer = "test"
audience = "tidegate"
algorithms = ["HS256"]
secret_file = "hs.secret"
${apiKey(DELEGATE, 'edge', ['engine:delegate'])}
${apiKey(WORK, 'workers', ['engine:work'])}
${apiKey(KEY, 'visitor@example.org', ['jobs:submit', 'jobs:read', 'jobs:control'])}
expires = 2099-01-01T00:00:00Z
`;

/** A token of the issuer. */
function mint(seconds) {
  const now = Math.floor(Date.now() / 1_000);
  const b64 = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const claims = { iss: 'test', aud: 'tidegate', sub: 'visitor@example.org', exp: now + seconds, scope: 'jobs:submit jobs:read jobs:control' };
  const message = `${b64({ alg: 'HS256' })}.${b64(claims)}`;
  return `${message}.${createHmac('sha256', SECRET).update(message).digest('base64url')}`;
}

let browser;
let stack;
before(async () => {
  browser = await launch();
  stack = await startStack({ auth: { files: { 'tidegate.toml': CONFIG, 'hs.secret': SECRET, 'edge.key': DELEGATE, 'workers.key': WORK }, token: KEY } });
});
after(async () => {
  await browser?.close();
  await stack?.stop();
});

/** Runs a test with a page of its own. */
function withPage(name, body) {
  test(name, async () => {
    const { page, finish } = await openPage(browser, { tolerated: [/Failed to load resource/, /EventSource/] });
    try {
      await body(page);
      await finish();
    } catch (error) {
      console.error(stack.report());
      throw error;
    } finally {
      await page.context().close();
    }
  });
}

withPage('e44_the_console_signs_in_watches_by_its_cookie_and_signs_out', async (page) => {
  const dialog = page.getByTestId('sign-in');
  await page.goto(stack.base);
  await dialog.waitFor();
  await page.getByTestId('token').fill('tg_wrong');
  await page.getByTestId('sign-in-submit').click();
  await until('the refusal is shown', async () => /not known/.test(await page.getByTestId('sign-in-error').textContent()));
  await page.getByTestId('token').fill(KEY);
  await page.getByTestId('sign-in-submit').click();
  await page.getByTestId('start').and(page.locator(':enabled')).waitFor();
  await page.reload();
  await page.getByTestId('start').and(page.locator(':enabled')).waitFor();
  assert.equal(await dialog.isVisible(), false, 'a reload asks again');
  assert.match(await page.getByTestId('sign-out').textContent(), /visitor@example\.org/);
  await page.getByTestId('kind').selectOption('demo');
  await page.getByTestId('field-steps').fill('4');
  await page.getByTestId('field-seconds').fill('1');
  await page.getByTestId('start').click();
  const card = page.getByTestId('job-card');
  await until('the card has ended', () => card.evaluate(({ dataset }) => dataset.status === 'COMPLETED' && dataset.wire === 'ended'));
  const kept = await page.evaluate(() => JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }, location.href]));
  assert.ok(!kept.includes('tidegate=') && !kept.includes(KEY), `scripts can read ${kept}`);
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, 'Strict', '/']);
  await page.getByTestId('sign-out').click();
  await dialog.waitFor();
  assert.deepEqual(await page.context().cookies(), []);
  assert.equal(await page.getByTestId('job-card').count(), 0, 'what was shown belonged to somebody else');
});

withPage('j20_a_watch_with_tokens_that_end_goes_on_with_new_ones_and_misses_nothing', async (page) => {
  await page.exposeFunction('mint', () => mint(5));
  const asked = [];
  page.on('request', (request) => asked.push(request.url()));
  await page.goto(`${stack.base}/style.css`); // a page without the console, and without a cookie
  await page.evaluate(async () => {
    const { submitJob, watchJob } = await import('/client.js');
    globalThis.seen = { events: [], states: [] };
    const { jobId } = await submitJob('demo', { steps: 30, seconds: 15 }, { token: globalThis.mint });
    watchJob(jobId, {
      token: globalThis.mint,
      onEvent: ({ name, seq }) => globalThis.seen.events.push([seq, name]),
      onStatus: (status) => globalThis.seen.states.push(status),
    });
  });
  await until('the watch is over', () => page.evaluate(() => ['ended', 'refused'].includes(globalThis.seen.states.at(-1)?.state)), 60_000);
  const { events, states } = await page.evaluate(() => globalThis.seen);
  assert.equal(states.at(-1).state, 'ended', JSON.stringify(states));
  assert.deepEqual(events.map(([seq]) => seq), events.map((_, n) => n + 1), 'each event once, in order');
  assert.equal(events.at(-1)[1], 'complete');
  const tickets = asked.filter((url) => url.includes('ticket='));
  assert.ok(tickets.length >= 3, `tokens lasted too long to show anything: ${tickets.length}`);
  assert.ok(tickets.every((url) => /\?ticket=[\w-]+$/.test(url)), 'a cursor beside a ticket tells what a reconnect looks like');
});

withPage('e45_an_event_source_reconnects_by_itself_with_the_url_of_its_ticket', async (page) => {
  await page.goto(`${stack.base}/style.css`);
  const url = await page.evaluate(async (token) => {
    const { submitJob } = await import('/client.js');
    const { jobId } = await submitJob('demo', { steps: 60, seconds: 12 }, { token });
    const order = { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: JSON.stringify({ jobId }) };
    const { ticket } = await (await fetch('/api/tickets', order)).json();
    const source = new EventSource(`/api/progress/${jobId}?ticket=${ticket}`);
    globalThis.seen = { ids: [], connects: 0, lost: 0 };
    source.onerror = () => (globalThis.seen.lost += 1);
    source.addEventListener('connected', () => (globalThis.seen.connects += 1));
    for (const name of ['state', 'progress', 'log', 'checkpoint', 'chart', 'complete']) {
      source.addEventListener(name, ({ lastEventId }) => globalThis.seen.ids.push(Number.parseInt(lastEventId, 10)));
    }
    source.addEventListener('complete', () => { globalThis.seen.over = true; source.close(); });
    return source.url;
  }, KEY);
  // The page has to be the first that connects: the ticket is good for a second from then on.
  await until('the page sees events', () => page.evaluate(() => globalThis.seen.ids.length > 0));
  // That second is over; whoever has the URL alone is refused.
  await until('the ticket is used up', async () => {
    const { status, body } = await fetch(url, { headers: { accept: 'text/event-stream' } });
    await body?.cancel();
    return status === 401;
  });
  const before = await page.evaluate(() => globalThis.seen.ids.length);
  await stack.gateway.stop('SIGKILL');
  await stack.gateway.start();
  await until('the job has ended', () => page.evaluate(() => globalThis.seen.over), 60_000);
  const { ids, connects, lost } = await page.evaluate(() => globalThis.seen);
  assert.ok(before > 0 && connects >= 2 && lost >= 1, `${before} events before, ${connects} connects, lost ${lost} times`);
  assert.deepEqual(ids, ids.map((_, n) => n + 1), 'each event once, in order');
});
