/**
 * Takes the README's pictures of the console, light and dark, from a real stack: `npm run screenshots`.
 */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { launch, openPage } from './browser.mjs';
import { startStack } from './stack.mjs';

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
  const { page, finish } = await openPage(browser);
  await page.goto(stack.base);
  const ids = await page.evaluate(async (inputs) => {
    const { submitJob } = await import('/client.js');
    const jobs = [];
    for (const input of inputs) jobs.push((await submitJob('demo', input)).jobId);
    localStorage.setItem('tidegate.open', JSON.stringify(jobs));
    return jobs;
  }, JOBS);
  await page.reload();
  await page.locator(`[data-testid=recent-job][data-job-id="${ids[2]}"][data-status=FAILED]`).waitFor();
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: join(OUT, `console-${colorScheme}.png`) });
  }
  await finish();
} finally {
  await browser.close();
  await stack.stop();
}
