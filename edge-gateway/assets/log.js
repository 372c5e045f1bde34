/**
 * The log of one card: its lines, the line count above them, following, and the download.
 *
 * Draws what `JobModel.lines` has gained since the last time, so that a flood costs each line once. The view follows
 * the end until the reader scrolls away from it. Keeps no lines of its own beside their elements.
 */

import { make, setText } from './dom.js';
import { formatInteger, shortId } from './format.js';
import { MAX_LINES } from './job.js';

/** How far from its end, in CSS pixels, a log still counts as being at its end. */
const AT_END_PX = 30;
const URL_KEPT_MS = 10_000;

export class LogView {
  #model;
  /** The array that is drawn, and how many of its lines were, counting those dropped since. */
  #lines = null;
  #drawn = 0;
  #follows = true;

  /** @param {import('./job.js').JobModel} model */
  constructor(model) {
    this.#model = model;
    const button = (testid, text, onclick, hidden) => (
      make('button', { type: 'button', class: 'quiet', 'data-testid': testid, onclick, hidden }, text)
    );
    this.count = make('span', { class: 'count', 'data-testid': 'log-count' });
    this.toEnd = button('to-end', 'Follow', () => this.#toEnd(), true);
    this.download = button('download', 'Download', () => this.#download());
    this.box = make('div', {
      class: 'lines',
      tabindex: '0',
      role: 'log',
      'aria-live': 'off',
      'aria-label': `Log of ${shortId(model.jobId)}`,
      'data-testid': 'log',
      onscroll: () => this.#scrolled(),
    });
    this.root = make('div', { class: 'log' },
      make('div', { class: 'log-bar' }, this.count, this.toEnd, this.download),
      this.box);
  }

  render() {
    const { lines, dropped, ended } = this.#model;
    const total = lines.length + dropped;
    if (this.#lines !== lines) {
      this.#lines = lines;
      this.#drawn = 0;
      this.box.replaceChildren();
    }
    if (this.#drawn < total) {
      this.box.append(...lines.slice(Math.max(0, this.#drawn - dropped)).map(makeLine));
      this.#drawn = total;
      while (this.box.childElementCount > MAX_LINES) this.box.firstElementChild.remove();
      if (this.#follows) this.box.scrollTop = this.box.scrollHeight;
    }
    const all = `${formatInteger(total)} ${total === 1 ? 'line' : 'lines'}`;
    setText(this.count, dropped ? `last ${formatInteger(lines.length)} of ${all}` : all);
    this.toEnd.hidden = this.#follows;
    this.download.hidden = total === 0;
    this.box.dataset.empty = ended ? 'No log lines.' : 'No log lines yet.';
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    this.#follows = scrollHeight - scrollTop - clientHeight < AT_END_PX;
    this.toEnd.hidden = this.#follows;
  }

  #toEnd() {
    this.#follows = true;
    this.box.scrollTop = this.box.scrollHeight;
    this.box.focus();
  }

  #download() {
    const { job, jobId, lines } = this.#model;
    const text = lines.map((line) => `${line.seq}\t${line.level}\t${line.source}\t${line.text}\n`).join('');
    const url = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
    make('a', { href: url, download: `${job.kind}-${jobId}.log` }).click();
    setTimeout(() => URL.revokeObjectURL(url), URL_KEPT_MS);
  }
}

function makeLine({ seq, text, level, source }) {
  const origin = source && source !== 'gap' ? make('span', { class: 'src' }, `${source}  `) : null;
  return make('div', { class: `line ${level}`, 'data-seq': seq },
    make('span', { class: 'n', 'aria-hidden': 'true' }, String(seq)),
    make('span', { class: 't' }, origin, text));
}
