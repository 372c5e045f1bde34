/**
 * Chromium for the tests: one browser a file, one fresh context a test. A page watches itself: errors on its console,
 * exceptions and violations of the content security policy are collected and must be none when the test ends.
 */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';

const EXECUTABLE = process.env.CHROMIUM ?? '/usr/bin/chromium';
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

export async function launch() {
  if (!existsSync(EXECUTABLE)) throw new Error(`${EXECUTABLE} is missing: install Debian's chromium, or set CHROMIUM`);
  return chromium.launch({ executablePath: EXECUTABLE, args: FLAGS });
}

/**
 * A page whose complaints are collected; `tolerated` are those that the test provokes.
 * @returns {Promise<{page: import('playwright-core').Page, finish(): Promise<void>}>}
 */
export async function openPage(browser, { tolerated = [], ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: 'reduce', ...options });
  const complaints = [];
  await context.exposeFunction('reportViolation', (text) => complaints.push(`CSP: ${text}`));
  await context.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => globalThis.reportViolation(`${event.violatedDirective} ${event.blockedURI}`));
  });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on('pageerror', (error) => complaints.push(error.stack ?? String(error)));
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(`${message.type()}: ${message.text()}`));
  return {
    page,
    async finish() {
      await context.close();
      assert.deepEqual(complaints.filter((text) => !tolerated.some((pattern) => pattern.test(text))), [], 'the page complained');
    },
  };
}
