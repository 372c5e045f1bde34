/**
 * A person at the console: signs in, starts a demo job from the form, and watches its card to the end. It is a part of
 * tests/deploy/containers.py, which kills what serves the page meanwhile, and says on its standard output what it sees:
 * first the job's id, then the number of the last event whenever that grows, then `COMPLETED`.
 *
 *   TIDEGATE_TOKEN=… node containers.mjs http://127.0.0.1:8080 STEPS SECONDS
 */

import assert from 'node:assert/strict';
import { launch, openPage } from './browser.mjs';

const [base, steps, seconds] = process.argv.slice(2);
/** Far beyond what a job takes, in milliseconds. */
const PATIENCE = 180_000;

const browser = await launch();
try {
  // A gateway is killed: that requests fail meanwhile is what is looked at.
  const { page, finish } = await openPage(browser, { tolerated: [/Failed to load resource/, /net::ERR_/] });
  await page.goto(base);
  await page.getByTestId('token').fill(process.env.TIDEGATE_TOKEN);
  await page.getByTestId('sign-in-submit').click();
  await page.getByTestId('start').and(page.locator(':enabled')).waitFor();
  await page.getByTestId('kind').selectOption('demo');
  await page.getByTestId('field-steps').fill(steps);
  await page.getByTestId('field-seconds').fill(seconds);
  await page.getByTestId('start').click();
  const card = page.getByTestId('job-card');
  const data = () => card.evaluate((element) => ({ ...element.dataset }));
  console.log((await data()).jobId);

  const deadline = Date.now() + PATIENCE;
  let shown = {};
  while (shown.wire !== 'ended') {
    assert.ok(Date.now() < deadline, `not ended: ${JSON.stringify(shown)}`);
    const now = await data();
    if (now.seq !== shown.seq) console.log(now.seq);
    shown = now;
    await page.waitForTimeout(50);
  }
  assert.equal(await card.getByRole('progressbar').getAttribute('aria-valuenow'), '100');
  assert.deepEqual([shown.first, shown.events], ['1', shown.seq], 'the card saw each event once');
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });
  console.log(shown.status);
  await finish();
} finally {
  await browser.close();
}
