/**
 * What the page shows of the jobs: a card for each open one, and the list of recent ones.
 *
 * Owns which jobs are open, in the order in which they were opened, and keeps their ids in localStorage; their logs are
 * not kept, they are replayed from the server. At most `MAX_CARDS` are open. What a card shows is the card's affair.
 */

import { Card } from './card.js';
import { listJobs } from './client.js';
import { $, make } from './dom.js';
import { formatAgo, shortId, statusWord } from './format.js';
import { link } from './link.js';

const MAX_CARDS = 50;
const MAX_RECENT = 30;
const OPEN_KEY = 'tidegate.open';

class Board {
  /** The open cards by job id, oldest first. @type {Map<string, Card>} */
  #cards = new Map();
  /** The recent jobs as last answered, newest first. */
  #recent = [];

  /** Opens a job's card, if it is not open yet, and brings it into view. */
  open(jobId, job, { focus = false } = {}) {
    this.#show(jobId, job);
    const { root } = this.#cards.get(jobId);
    if (focus) root.focus({ preventScroll: true });
    root.scrollIntoView({ block: 'nearest' });
  }

  /** Opens again what was open before the page was loaded. */
  restore() {
    for (const jobId of recallOpen()) this.#show(jobId);
  }

  #show(jobId, job) {
    if (this.#cards.has(jobId)) return;
    if (this.#cards.size >= MAX_CARDS) this.close(this.#cards.values().next().value);
    const card = new Card(this, jobId, job);
    this.#cards.set(jobId, card);
    $('cards').prepend(card.root);
    this.#changed();
  }

  /** Closes a card; the focus, if it was inside, goes to a neighbour. */
  close(card) {
    if (!this.#cards.delete(card.jobId)) return;
    const { root } = card;
    const next = root.nextElementSibling ?? root.previousElementSibling;
    const hadFocus = root.contains(document.activeElement);
    card.close();
    root.remove();
    this.#changed();
    if (hadFocus) (next ?? $('start')).focus();
  }

  #changed() {
    rememberOpen([...this.#cards.keys()]);
    $('empty').hidden = this.#cards.size > 0;
    this.#renderRecent();
  }

  /** Once a second. */
  tick() {
    for (const card of this.#cards.values()) card.tick();
  }

  /** The gateway is known to answer: nobody needs to sit out a pause. */
  hurry() {
    for (const card of this.#cards.values()) card.hurry();
  }

  /** Asks for the recent jobs. */
  async refresh() {
    try {
      this.#recent = (await link.watch(listJobs({ limit: MAX_RECENT }))).jobs;
      this.#renderRecent();
    } catch {
      // The lamp says it; the list stays as it was.
    }
  }

  #renderRecent() {
    const list = $('recent');
    const focused = document.activeElement?.closest?.('#recent button')?.dataset.jobId;
    list.replaceChildren(...this.#recent.map((job) => make('li', {}, this.#makeEntry(job))));
    if (focused) list.querySelector(`[data-job-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #makeEntry(job) {
    const status = statusWord(job.status);
    return make('button', {
      type: 'button',
      'data-job-id': job.jobId,
      'data-status': job.status,
      'data-testid': 'recent-job',
      'aria-pressed': String(this.#cards.has(job.jobId)),
      title: `${status}, ${job.jobId}`,
      onclick: () => this.open(job.jobId, job, { focus: true }),
    },
    make('span', { class: 'dot', 'aria-hidden': 'true' }),
    make('span', { class: 'name' },
      job.kind,
      make('span', { class: 'mono' }, shortId(job.jobId)),
      make('span', { class: 'unseen' }, `, ${status}`)),
    make('span', { class: 'when' }, formatAgo(job.createdAt)));
  }
}

function rememberOpen(ids) {
  try {
    localStorage.setItem(OPEN_KEY, JSON.stringify(ids));
  } catch {
    // Private windows may refuse: the console then forgets its cards on reload, and nothing else.
  }
}

function recallOpen() {
  try {
    const ids = JSON.parse(localStorage.getItem(OPEN_KEY) ?? '[]');
    return Array.isArray(ids) ? ids.filter((id) => typeof id === 'string').slice(-MAX_CARDS) : [];
  } catch {
    return [];
  }
}

/** Forgets which jobs were open: their ids are nobody else's business. */
export function forgetOpen() {
  rememberOpen([]);
}

export const board = new Board();
