/**
 * The console starts here: joins the form, the board and the lamp, and keeps them fresh.
 *
 *     app ─┬─ form            starts jobs
 *          ├─ board ── card   open jobs and recent ones; a card is a model (`job`), a view of it (`card-view`, `log`,
 *          │                  `chart`), and what feeds it (`client`, `slots`)
 *          ├─ link            the connection lamp
 *          └─ visitor         who looks, where the gateway asks for it
 *
 * Invariant: all that is shown comes from the gateway's public API through `client.js`, so whatever the console does,
 * any other page can do too. It holds no state that a reload would miss.
 */

import { board, forgetOpen } from './board.js';
import { $, announce, setText } from './dom.js';
import { launcher } from './form.js';
import { shortId } from './format.js';
import { link, Pause, POLL_MS } from './link.js';
import { visitor } from './visitor.js';

/** The address that the command line assumes when it is told none. */
const USUAL_ORIGIN = 'http://127.0.0.1:8080';
const pause = new Pause();

/** Asks for kinds and recent jobs again and again, while somebody looks. */
async function pollForever() {
  for (;;) {
    if (!document.hidden) await Promise.all([launcher.refresh(), board.refresh()]);
    await pause.wait((link.isAway ? POLL_MS / 2 : POLL_MS) * (0.75 + Math.random() / 2));
  }
}

launcher.onStarted = (job) => {
  board.open(job.jobId, job);
  announce(`${job.kind} ${shortId(job.jobId)} started`);
  board.refresh();
};
link.onBack = () => board.hurry();
link.onStranger = () => visitor.ask();
visitor.onLeave = () => forgetOpen();

$('kind').addEventListener('change', () => launcher.choose());
$('input-mode').addEventListener('click', () => launcher.toggle());
$('launcher').addEventListener('submit', (event) => {
  event.preventDefault();
  launcher.submit();
});
$('input').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) launcher.submit();
});
$('first-run').addEventListener('click', () => launcher.submitFirst());
for (const event of ['online', 'visibilitychange']) addEventListener(event, () => pause.end());
setInterval(() => {
  board.tick();
  link.render();
}, 1_000);

const server = location.origin === USUAL_ORIGIN ? '' : ` --server ${location.origin}`;
setText($('cli-submit'), `tidegate submit demo '{}' --watch${server}`);
setText($('curl-submit'), [
  `curl -s ${location.origin}/api/jobs -H 'content-type: application/json' \\`,
  '  -d \'{"kind":"demo","input":{}}\'',
  `curl -N ${location.origin}/api/progress/JOB_ID`,
].join('\n'));

visitor.greet();
board.restore();
pollForever();
