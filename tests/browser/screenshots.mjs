/**
 * Takes the README's pictures of the console, light and dark, from a real stack: `npm run screenshots`.
 */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { launch, openPage } from './browser.mjs';
import { startStack, until } from './stack.mjs';

const OUT = join(import.meta.dirname, '../../docs/images');
/** Oldest first: the newest card stands at the top left. */
const JOBS = [
  { steps: 6, seconds: 6, customEvery: 2, result: { rows: 42049, rejected: 0, table: 'zipcodes' } },
  { steps: 40, seconds: 30, customEvery: 1 },
  { steps: 8, seconds: 16, failAt: 6, retryable: true, customEvery: 0 },
  { steps: 24, seconds: 24, customEvery: 0 },
];

const stack = await startStack();
const browser = await launch();
try {
  await mkdir(OUT, { recursive: true });
  const views = [];
  for (const colorScheme of ['light', 'dark']) views.push({ colorScheme, ...(await openPage(browser, { colorScheme })) });
  await views[0].page.goto(stack.base);
  const ids = await views[0].page.evaluate(async (inputs) => {
    const { submitJob } = await import('/client.js');
    const jobs = [];
    for (const input of inputs) jobs.push((await submitJob('demo', input)).jobId);
    return jobs;
  }, JOBS);
  for (const { page } of views) {
    // Both pages have four streams: more than one browser profile has connections, but contexts do not share theirs.
    await page.context().addInitScript((open) => localStorage.setItem('tidegate.open', JSON.stringify(open)), ids);
    await page.goto(stack.base);
  }
  for (const { page, colorScheme, finish } of views) {
    const status = (id) => page.locator(`[data-job-id="${id}"][data-testid=job-card]`).getAttribute('data-status');
    await until('the third job has failed', async () => (await status(ids[2])) === 'FAILED');
    await page.screenshot({ path: join(OUT, `console-${colorScheme}.png`) });
    await finish();
  }
} finally {
  await browser.close();
  await stack.stop();
}
