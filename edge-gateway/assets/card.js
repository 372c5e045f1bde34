/**
 * One open job: follows it, steers it, and hands what it learns to its model and its view.
 *
 * Follows by a stream if one of the origin's slots is free, and by snapshots until one is. Reconnecting, gaps and the
 * end of a stream are the affair of `watchJob`; where the card stands on the page is the board's.
 */

import { cancelJob, deleteJob, getJob, retryJob, watchJob } from './client.js';
import { CardView } from './card-view.js';
import { announce } from './dom.js';
import { explain, shortId } from './format.js';
import { JobModel } from './job.js';
import { link, Pause, POLL_MS } from './link.js';
import { takeSlot } from './slots.js';

/** Custom events to ask for by name at once; `watchJob` finds the others by the hole that they leave. */
const EXPECTED_CUSTOMS = ['chart'];
const CANCEL_REASON = 'cancelled in the console';

export class Card {
  #board;
  #model;
  #view;
  #pause = new Pause();
  #watch = null;
  /** Gives the stream slot back; null without one. */
  #release = null;
  /** Which run of `#follow` is the current one; null when the card is not following. */
  #run = null;
  #closed = false;

  /**
   * @param {{close(card: Card): void, refresh(): void}} board
   * @param {string} jobId
   * @param {import('./client.js').Job} [job] a snapshot, if there is one already
   */
  constructor(board, jobId, job) {
    this.jobId = jobId;
    this.#board = board;
    this.#model = new JobModel(jobId);
    if (job) this.#model.adopt(job);
    this.#view = new CardView(this.#model, {
      cancel: () => this.#act(() => cancelJob(jobId, { reason: CANCEL_REASON })),
      retry: () => this.#retry(),
      delete: () => this.#delete(),
      close: () => board.close(this),
    });
    this.#follow();
  }

  get root() {
    return this.#view.root;
  }

  /** Draws what changes with the clock; to be called once a second. */
  tick() {
    this.#view.tick();
  }

  /** The gateway is known to answer, or a slot is free: do not sit out the pause. */
  hurry = () => {
    this.#pause.end();
    this.#watch?.retryNow();
  };

  /** Ends everything the card does, for good. */
  close() {
    this.#closed = true;
    this.#stop();
    link.report(this, undefined);
  }

  // --- following

  async #follow() {
    const run = Symbol(this.jobId);
    this.#run = run;
    for (let tries = 0; this.#run === run; tries += 1) {
      try {
        if (!this.#model.known || tries > 0) this.#adopt(await link.watch(getJob(this.jobId)));
        const release = await takeSlot(this.hurry);
        if (this.#run !== run) return release?.();
        if (release) return this.#stream(release);
        this.#setWire({ state: 'waiting' });
      } catch (error) {
        if (this.#run !== run) return undefined;
        if (!error.passing) return this.#setWire({ state: 'refused', error });
        this.#setWire({ state: 'offline', since: this.#model.wire.since ?? Date.now() });
      }
      await this.#pause.wait(POLL_MS * (0.5 + Math.random() / 2));
    }
    return undefined;
  }

  #stream(release) {
    this.#release = release;
    this.#watch = watchJob(this.jobId, {
      cursor: this.#model.cursor,
      events: EXPECTED_CUSTOMS,
      onEvent: (event) => this.#apply(event),
      onSnapshot: (job) => this.#adopt(job),
      onStatus: (status) => {
        if (status.state === 'ended' || status.state === 'refused') this.#giveSlotBack();
        this.#setWire(status);
      },
    });
  }

  #stop() {
    this.#run = null;
    this.#watch?.close();
    this.#watch = null;
    this.#giveSlotBack();
    this.#pause.end();
  }

  #giveSlotBack() {
    this.#release?.();
    this.#release = null;
  }

  #setWire(wire) {
    if (this.#closed) return;
    this.#model.wire = wire;
    link.report(this, wire.state === 'offline' ? wire.since : undefined);
    this.#view.draw();
  }

  #adopt(job) {
    this.#model.adopt(job);
    this.#view.draw();
  }

  #apply(event) {
    const news = this.#model.apply(event);
    this.#view.draw();
    if (news === undefined) return;
    announce(`${this.#model.job.kind} ${shortId(this.jobId)}: ${news}`);
    if (this.#model.ended) this.#board.refresh();
  }

  // --- steering

  /** Does something whose answer is a snapshot; a refusal is shown on the card. Returns whether it was done. */
  async #act(action) {
    this.#model.trouble = '';
    try {
      this.#model.adopt(await link.watch(action()));
      return true;
    } catch (error) {
      this.#model.trouble = explain(error);
      return false;
    } finally {
      this.#view.draw();
    }
  }

  async #retry() {
    if (!(await this.#act(() => retryJob(this.jobId))) || this.#closed) return;
    this.#stop();
    this.#model.notices = [];
    this.#setWire({ state: 'connecting' });
    this.#view.focusCancel();
    this.#follow();
  }

  async #delete() {
    try {
      await link.watch(deleteJob(this.jobId));
      this.#board.close(this);
      this.#board.refresh();
    } catch (error) {
      this.#model.trouble = explain(error);
      this.#view.draw();
    }
  }
}
