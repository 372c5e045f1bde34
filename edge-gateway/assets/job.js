/**
 * What is known of one job: the model behind a card.
 *
 * Changed only by `apply` (events, in the order of the log) and `adopt` (snapshots), and by the card that owns it.
 * Invariants: an event that a snapshot already told of does not take the job back; everything kept is bounded.
 * No DOM and no requests: `CardView` draws it, `Card` feeds it.
 */

import { MAX_POINTS } from './chart.js';
import { isTerminal, parseCursor } from './client.js';
import { statusWord } from './format.js';

export const MAX_LINES = 2_000;
const MAX_CUSTOM_NAMES = 8;
const MAX_NOTICES = 3;
/** The events that move the job itself; beside them are `log`, `gap` and custom names. */
const JOB_EVENTS = new Set(['state', 'progress', 'checkpoint', 'complete', 'failed', 'cancelled']);

export class JobModel {
  /** The last event applied, and the one that the last snapshot told of. */
  seq = 0;
  head = 0;
  /** Where to read on. @type {string|undefined} */
  cursor;
  /** The first event applied and how many they were, for whoever checks that none is missing. */
  first;
  events = 0;
  /** The newest log lines, and how many older ones were dropped. A new array stands for a new log. */
  lines = [];
  dropped = 0;
  /** The newest event of each custom name; replaced, never changed. @type {Map<string, {count, data, points}>} */
  customs = new Map();
  notices = [];
  /** How the job ended: `{result}`, `{error}` or `{cancelled}`; null while it has not. */
  outcome = null;
  /** When the estimate of the remaining time came, in ms. */
  etaAt = 0;
  /** Whether a snapshot has come. */
  known = false;
  /** How the watch stands, a `WatchStatus` or `waiting` for a slot; and why the last action was refused. */
  wire = { state: 'connecting' };
  trouble = '';
  #wasRunning = false;

  constructor(jobId) {
    this.jobId = jobId;
    /** The job as of the last event. */
    this.job = { jobId, kind: '…', status: 'QUEUED', attempt: 0 };
  }

  get ended() {
    return isTerminal(this.job.status);
  }

  /** Takes over a snapshot, unless the log has already told more. */
  adopt(job) {
    const head = parseCursor(job.cursor)?.seq ?? 0;
    if (head >= this.seq) {
      this.head = head;
      this.job = { ...job };
      this.etaAt = Date.now();
      const { result, error, cancelled } = job;
      this.outcome = this.ended ? { result, error, cancelled } : null;
    }
    this.#wasRunning ||= !isTerminal(job.status);
    this.known = true;
  }

  /**
   * Takes the next event.
   * @param {import('./client.js').JobEvent} event
   * @returns {string|undefined} what is worth saying aloud
   */
  apply({ name, data, seq, cursor }) {
    this.seq = seq;
    this.cursor = cursor;
    if (name === 'gap') return this.#gap(data ?? {}, seq);
    this.first ??= seq;
    this.events += 1;
    if (name === 'log') this.#addLine({ seq, ...data });
    else if (!JOB_EVENTS.has(name)) this.#addCustom(name, data);
    // A replay does not take the job back behind its snapshot.
    else if (seq > this.head) return this.#advance(name, data ?? {});
    return undefined;
  }

  #advance(name, value) {
    const { job } = this;
    switch (name) {
      case 'state': {
        const { status, attempt, runAt, cancelRequested } = value;
        Object.assign(job, { status, attempt, runAt, cancelRequested });
        if (status === 'PROCESSING') job.startedAt ??= value.at;
        this.outcome = null;
        return undefined;
      }
      case 'progress':
        job.progress = { ...value, percent: value.progress };
        this.etaAt = Date.now();
        return undefined;
      case 'checkpoint':
        job.checkpoint = value;
        return undefined;
      case 'complete':
        job.progress = { ...job.progress, percent: 100 };
        return this.#end('COMPLETED', { result: value.result });
      case 'failed':
        return this.#end('FAILED', { error: value });
      default:
        return this.#end('CANCELLED', { cancelled: value });
    }
  }

  #end(status, outcome) {
    this.job.status = status;
    this.outcome = outcome;
    // A job that had ended when it was opened is no news.
    return this.#wasRunning ? statusWord(status) : undefined;
  }

  #gap({ from, to, reason, snapshot }, seq) {
    if (reason === 'reset') this.#forget();
    const why = reason === 'trimmed' ? 'they are no longer kept' : 'they could not be read';
    const text = reason === 'reset'
      ? 'The log was lost and begins anew; what was shown before it is gone.'
      : `Events ${from} to ${to} cannot be shown: ${why}.`;
    this.notices = [...this.notices, text].slice(-MAX_NOTICES);
    this.#addLine({ seq, text, level: 'warn', source: 'gap' });
    if (snapshot) this.adopt(snapshot);
    return text;
  }

  /** Another log begins: what was shown belongs to one that is gone. */
  #forget() {
    this.seq = 0;
    this.head = 0;
    this.first = undefined;
    this.events = 0;
    this.lines = [];
    this.dropped = 0;
    this.customs.clear();
  }

  #addLine(line) {
    this.lines.push(line);
    if (this.lines.length <= MAX_LINES) return;
    this.lines.shift();
    this.dropped += 1;
  }

  #addCustom(name, data) {
    const { customs } = this;
    if (!customs.has(name) && customs.size >= MAX_CUSTOM_NAMES) customs.delete(customs.keys().next().value);
    const { count, points } = customs.get(name) ?? { count: 0, points: [] };
    const isPoint = Number.isFinite(data?.x) && Number.isFinite(data?.y);
    const collected = isPoint ? [...points, [data.x, data.y]].slice(-MAX_POINTS) : points;
    customs.set(name, { count: count + 1, data, points: collected });
  }
}
