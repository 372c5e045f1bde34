/**
 * The browser module in a real browser against a scripted server, for what a healthy gateway never does: silence, permanent
 * closes, names that nobody listens for, duplicates, gaps. The server serves `client.js` itself and plays one script a test.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { launch, openPage } from './browser.mjs';
import { until } from './stack.mjs';

const CLIENT = await readFile(join(import.meta.dirname, '../../edge-gateway/assets/client.js'));
const JOB = '01902f5e-0000-7000-8000-000000000001';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

const frame = (seq, event, data, epoch = 'aaaaaa') => `id: ${seq}-${epoch}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
const connected = (seq, more = {}) => `retry: 50\nevent: connected\ndata: ${JSON.stringify({ jobId: JOB, status: 'PROCESSING', cursor: `${seq}-aaaaaa`, resumed: false, ...more })}\n\n`;
const end = (seq) => frame(seq, 'complete', { progress: 100, status: 'COMPLETED', result: 1 });

/**
 * Runs `watchJob` in a page. `stream(answer, cursor, n)` plays the n-th stream, from 1; `job` is the snapshot to answer with.
 * Returns what the watch reported once it has ended, and what was asked of the server.
 */
function scripted(name, { stream, job = () => ({ status: 'PROCESSING', cursor: '0-aaaaaa' }), options = {} }, check) {
  test(name, async () => {
    const asked = [];
    const server = createServer((request, response) => {
      const url = new URL(request.url, 'http://localhost');
      if (url.pathname === '/client.js') return response.writeHead(200, { 'content-type': 'text/javascript' }).end(CLIENT);
      if (url.pathname.startsWith('/api/jobs/')) {
        const { httpStatus = 200, ...body } = job(asked);
        asked.push('job');
        return response.writeHead(httpStatus, { 'content-type': 'application/json' }).end(JSON.stringify({ jobId: JOB, kind: 'demo', ...body }));
      }
      if (url.pathname.startsWith('/api/progress/')) {
        const cursor = request.headers['last-event-id'] ?? url.searchParams.get('lastEventId') ?? '';
        asked.push(`stream ${cursor}`);
        const answer = (...parts) => {
          if (!response.headersSent) response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
          for (const part of parts) response.write(part);
          return response;
        };
        answer.refuse = (status) => response.writeHead(status).end();
        return stream(answer, cursor, asked.filter((what) => what !== 'job').length);
      }
      return response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><link rel="icon" href="data:,">');
    });
    await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
    const { page, finish } = await openPage(browser, { tolerated: [/Failed to load resource/, /EventSource/] });
    try {
      await page.goto(`http://127.0.0.1:${server.address().port}/`);
      await page.evaluate(async ([jobId, given]) => {
        const { watchJob } = await import('/client.js');
        globalThis.seen = { events: [], states: [] };
        watchJob(jobId, {
          ...given,
          onEvent: ({ name, data, seq }) => globalThis.seen.events.push([seq, name, data]),
          onStatus: (status) => globalThis.seen.states.push(status),
        });
      }, [JOB, options]);
      await until('the watch is over', () => page.evaluate(() => ['ended', 'refused'].includes(globalThis.seen.states.at(-1)?.state)));
      const seen = await page.evaluate(() => globalThis.seen);
      await check({ ...seen, names: seen.events.map(([seq, event]) => `${seq} ${event}`), asked });
      await finish();
    } catch (error) {
      console.error(asked.slice(-40), await page.evaluate(() => globalThis.seen).catch(String));
      throw error;
    } finally {
      await page.context().close();
      server.closeAllConnections();
      server.close();
    }
  });
}

const finished = (seq) => () => ({ status: 'COMPLETED', cursor: `${seq}-aaaaaa` });

scripted('custom events with unknown names are fetched in their place', {
  job: finished(5),
  stream(answer, cursor) {
    const log = [frame(1, 'log', 'one'), frame(2, 'tide.table', { high: 3 }), frame(3, 'log', { text: 'three', level: 'warn', source: 's' }), frame(4, 'tide.table', { high: 4 }), end(5)];
    const seq = Number.parseInt(cursor, 10) || 0;
    answer(connected(seq), ...log.slice(seq)).end();
  },
}, ({ events, asked }) => {
  assert.deepEqual(events.slice(0, 4), [
    [1, 'log', { text: 'one', level: 'info', source: '' }],
    [2, 'tide.table', { high: 3 }],
    [3, 'log', { text: 'three', level: 'warn', source: 's' }],
    [4, 'tide.table', { high: 4 }],
  ]);
  assert.equal(events.length, 5);
  assert.ok(asked.includes('stream 1-aaaaaa'), 'the hole was read from the cursor before it');
});

scripted('a hole that cannot be fetched at once is fetched later', {
  job: finished(3),
  options: { retryMs: 10 },
  stream(answer, cursor, n) {
    if (n === 2) answer.refuse(503);
    else answer(connected(0), ...[frame(1, 'log', 'one'), frame(2, 'tide.table', {}), end(3)].slice(Number.parseInt(cursor, 10) || 0)).end();
  },
}, ({ names }) => assert.deepEqual(names, ['1 log', '2 tide.table', '3 complete']));

scripted('e26_a_hole_that_the_server_has_too_is_announced', {
  job: finished(5),
  stream: (answer, cursor) => answer(connected(0), ...[frame(1, 'log', 'one'), frame(4, 'log', 'four'), end(5)].slice(cursor ? 1 : 0)).end(),
}, ({ events }) => {
  assert.deepEqual(events[1].slice(0, 2), [3, 'gap']);
  assert.deepEqual(events[1][2], { from: 2, to: 3, reason: 'unread' });
  assert.deepEqual(events.map(([seq]) => seq), [1, 3, 4, 5]);
});

scripted('e16_a_permanent_close_is_taken_over_with_the_cursor', {
  job: (asked) => (asked.length > 2 ? finished(3)() : { status: 'PROCESSING', cursor: '3-aaaaaa' }),
  stream(answer, cursor, n) {
    if (n === 1) answer(connected(0), frame(1, 'log', 'one')).end();
    else if (n === 2) answer.refuse(503);
    else answer(connected(1, { resumed: true }), frame(2, 'log', 'two'), end(3)).end();
  },
}, ({ names, states, asked }) => {
  assert.deepEqual(names, ['1 log', '2 log', '3 complete']);
  assert.deepEqual(asked.slice(0, 4), ['stream ', 'stream 1-aaaaaa', 'job', 'stream 1-aaaaaa']);
  assert.ok(states.some(({ state, since, retryAt }) => state === 'offline' && retryAt > since));
});

scripted('e6_duplicates_are_dropped_and_gaps_are_told', {
  job: finished(9),
  stream: (answer) => answer(connected(0), frame(1, 'log', 'a'), frame(1, 'log', 'a'), frame(7, 'gap', { from: 2, to: 7, reason: 'trimmed' }), frame(8, 'log', 'b'), end(9)).end(),
}, ({ names, asked }) => {
  assert.deepEqual(names, ['1 log', '7 gap', '8 log', '9 complete']);
  assert.equal(asked.filter((what) => what !== 'job').length, 1, 'a gap that was told is not read again');
});

scripted('a log of another epoch is followed after its gap', {
  job: () => ({ status: 'COMPLETED', cursor: '2-bbbbbb' }),
  options: { cursor: '40-aaaaaa' },
  stream: (answer) => answer(connected(0, { cursor: '0-bbbbbb' }), frame(0, 'gap', { from: 1, to: 0, reason: 'reset' }, 'bbbbbb'), frame(1, 'log', 'new', 'bbbbbb'), frame(2, 'complete', {}, 'bbbbbb')).end(),
}, ({ names }) => assert.deepEqual(names, ['0 gap', '1 log', '2 complete']));

scripted('a terminal event in the middle of a retried log does not end the watch', {
  job: (asked) => (asked.filter((what) => what === 'job').length === 0 ? { status: 'PROCESSING', cursor: '3-aaaaaa' } : finished(4)()),
  stream(answer) {
    const response = answer(connected(0), frame(1, 'log', 'a'), frame(2, 'failed', { status: 'FAILED', code: 'x', message: 'y' }));
    setTimeout(() => { response.write(frame(3, 'state', { status: 'PROCESSING' })); response.end(end(4)); }, 400);
  },
}, ({ names }) => assert.deepEqual(names, ['1 log', '2 failed', '3 state', '4 complete']));

scripted('j20_a_silent_stream_is_noticed_and_polled', {
  // A buffering proxy: the stream opens and nothing more comes, while the snapshot moves on.
  job: (asked) => (asked.length > 40 ? finished(2)() : { status: 'PROCESSING', cursor: '2-aaaaaa', progress: { percent: 50 } }),
  options: { silenceMs: 100, pollMs: 20, retryMs: 10 },
  stream(answer, cursor, n) {
    if (n < 4) answer(':\n\n');
    else answer(connected(0), frame(1, 'log', 'late'), end(2)).end();
  },
}, ({ names, states }) => {
  assert.ok(states.some(({ state, job }) => state === 'polling' && job.progress.percent === 50), 'snapshots stood in');
  assert.deepEqual(names, ['1 log', '2 complete']);
});

scripted('e34_a_snapshot_that_lags_does_not_make_the_watch_loop', {
  job: (asked) => (asked.length > 4 ? finished(1)() : { status: 'PROCESSING', cursor: '0-aaaaaa' }),
  options: { retryMs: 20 },
  stream: (answer, cursor) => (cursor ? answer.refuse(204) : answer(connected(0), end(1)).end()),
}, ({ names, asked }) => {
  assert.deepEqual(names, ['1 complete']);
  assert.ok(asked.length < 10, `${asked}`);
});

scripted('a goodbye that forbids reconnecting ends the watch', {
  stream: (answer) => answer(connected(0), 'event: goodbye\ndata: {"reason":"deleted","reconnect":false}\n\n').end(),
}, ({ states, asked }) => {
  assert.deepEqual([states.at(-1).state, states.at(-1).reason], ['refused', 'deleted']);
  assert.deepEqual(asked, ['stream ']);
});

scripted('a job that does not exist is refused with its problem', {
  job: () => ({ httpStatus: 404, type: '/problems/job-not-found', title: 'Job not found', status: 404 }),
  stream: (answer) => answer.refuse(404),
}, ({ states, asked }) => {
  assert.equal(states.at(-1).state, 'refused');
  assert.deepEqual(asked, ['stream ', 'job'], 'nothing is tried again');
});
