/**
 * The console: starts jobs, shows each open one as a card, and says so when it cannot.
 *
 * Owners: `launcher` the form, `recent` the list, `link` the connection lamp, one `Card` each open job. A card's model
 * changes only in `Card.apply` (events) and `Card.adopt` (snapshots); `Card.render` draws it at most once a frame.
 * Invariants: whatever comes from the server enters the page as text, never as markup; everything kept is bounded.
 * Open job ids are kept in localStorage; logs are not, they are replayed from the server.
 */

import { cancelJob, deleteJob, getJob, isTerminal, listJobs, listKinds, NetworkError, retryJob, submitJob, watchJob } from './client.js';

/** Browsers open six HTTP/1.1 connections per origin; the sixth is left for requests. */
const MAX_STREAMS = 5;
const MAX_LINES = 2_000;
const MAX_CARDS = 50;
const MAX_CUSTOM_NAMES = 8;
const MAX_POINTS = 500;
const MAX_JSON_SHOWN = 8_000;
const POLL_MS = 4_000;
const OPEN_KEY = 'tidegate.open';
/** The events that move the job itself; beside them are `log`, `gap` and custom names. */
const JOB_EVENTS = new Set(['state', 'progress', 'checkpoint', 'complete', 'failed', 'cancelled']);
const STATUS_WORDS = { SCHEDULED: 'Scheduled', QUEUED: 'Queued', PROCESSING: 'Running', COMPLETED: 'Completed', FAILED: 'Failed', CANCELLED: 'Cancelled' };

// --- small tools -------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const SVG = 'http://www.w3.org/2000/svg';

/** Makes an element. Attributes are set as such, children are nodes or text; there is no way to pass markup. */
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'polyline'].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** Sets text only when it differs, so that selections and live regions are left alone. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function announce(text) {
  $('announcer').textContent = text;
}

const integer = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

function formatAmount(value, unit) {
  if (unit !== 'bytes') return value < 100 ? short.format(value) : integer.format(value);
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${short.format(value / 1000 ** power)} ${['B', 'kB', 'MB', 'GB', 'TB'][power]}`;
}

function formatMeasure(value, unit) {
  const amount = formatAmount(value, unit);
  return unit && unit !== 'bytes' ? `${amount} ${unit}` : amount;
}

function formatSpan(seconds, coarse = false) {
  const s = Math.max(0, Math.round(seconds));
  const [big, unit, small, rest] = s < 60 ? [s, 's'] : s < 3600 ? [s / 60, 'min', s % 60, 's'] : s < 86_400 ? [s / 3600, 'h', (s % 3600) / 60, 'min'] : [s / 86_400, 'd', (s % 86_400) / 3600, 'h'];
  const first = `${Math.floor(big)} ${unit}`;
  return rest && !coarse ? `${first} ${String(Math.floor(small)).padStart(2, '0')} ${rest}` : first;
}

function formatAgo(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  return seconds < 5 ? 'now' : `${formatSpan(seconds, true)} ago`;
}

/** The random end of a UUID v7 tells jobs apart; its beginning is the time. */
const shortId = (jobId) => jobId.slice(-6);

function showJson(value) {
  const line = JSON.stringify(value) ?? 'none';
  const text = line.length <= 100 ? line : JSON.stringify(value, null, 2);
  return text.length > MAX_JSON_SHOWN ? `${text.slice(0, MAX_JSON_SHOWN)} … (${integer.format(text.length)} characters)` : text;
}

function explain(error) {
  const fields = (error.fields ?? []).map(({ field, description }) => `${field}: ${description}`);
  return [error.message, ...fields].join('\n');
}

function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Wakes the loop that asks for kinds and recent jobs. */
let pollNow = () => {};

// --- the connection lamp -----------------------------------------------------------------------

const link = {
  /** When requests began to fail; 0 while they succeed. */
  since: 0,
  trouble: '',
  known: false,

  /** Runs a request and remembers whether the gateway answered. */
  async watch(promise) {
    try {
      const answer = await promise;
      this.answered('');
      return answer;
    } catch (error) {
      if (error instanceof NetworkError) this.since ||= Date.now();
      else this.answered(error.status >= 500 ? error.message : '');
      this.render();
      throw error;
    }
  },

  answered(trouble) {
    const wasAway = this.since > 0;
    this.since = 0;
    this.known = true;
    this.trouble = trouble;
    if (wasAway) for (const card of cards.values()) card.hurry();
    this.render();
  },

  render() {
    const broken = [...cards.values()].filter((card) => card.wire.state === 'offline').map((card) => card.wire.since);
    const since = Math.min(...[this.since || Infinity, ...broken]);
    let [state, text] = ['connecting', 'Connecting…'];
    if (since !== Infinity) [state, text] = ['offline', `Offline, reconnecting… (${integer.format((Date.now() - since) / 1000)} s)`];
    else if (this.trouble) [state, text] = ['offline', `Connected, but: ${this.trouble}`];
    else if (this.known) [state, text] = ['live', 'Connected'];
    const before = $('link').dataset.state;
    $('link').dataset.state = state;
    setText($('link-text'), text);
    if (before === 'live' && state === 'offline') announce('Offline, reconnecting');
    if (before === 'offline' && state === 'live') announce('Connected again');
  },
};

// --- stream slots ------------------------------------------------------------------------------

let streamsHere = 0;

/** Takes one of the origin's stream slots, shared between tabs where the browser has locks; null when all are taken. */
async function takeSlot() {
  if (!navigator.locks) {
    if (streamsHere >= MAX_STREAMS) return null;
    streamsHere += 1;
    return () => void (streamsHere -= 1);
  }
  for (let slot = 0; slot < MAX_STREAMS; slot += 1) {
    const release = await new Promise((resolve) => {
      // The lock is held until the promise returned here settles: `resolve(release)` hands its resolver out.
      const hold = (lock) => (lock ? new Promise((done) => { resolve(done); }) : resolve(null));
      navigator.locks.request(`tidegate-stream-${slot}`, { ifAvailable: true }, hold).catch(() => resolve(null));
    });
    if (release) return release;
  }
  return null;
}

// --- open jobs ---------------------------------------------------------------------------------

/** The open cards by job id, in the order in which they were opened. @type {Map<string, Card>} */
const cards = new Map();

function rememberOpen() {
  try {
    localStorage.setItem(OPEN_KEY, JSON.stringify([...cards.keys()]));
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

function openJob(jobId, job, { focus = false } = {}) {
  let card = cards.get(jobId);
  if (!card) {
    if (cards.size >= MAX_CARDS) cards.values().next().value.dismiss();
    card = new Card(jobId, job);
    cards.set(jobId, card);
    $('cards').prepend(card.root);
    rememberOpen();
    $('empty').hidden = true;
    recent.render();
  }
  if (focus) {
    card.root.focus({ preventScroll: true });
    card.root.scrollIntoView({ block: 'nearest' });
  }
}

class Card {
  // The model.
  job;
  known = false;
  /** The last event shown, and the last one that a snapshot already told of. */
  seq = 0;
  head = 0;
  lines = [];
  dropped = 0;
  customs = new Map();
  notices = [];
  outcome = null;
  etaAt = 0;
  wire = { state: 'connecting' };
  trouble = '';

  #cursor;
  #watch = null;
  #slot = null;
  #gone = false;
  #dirty = false;
  #fresh = [];
  #follow = true;
  #wasRunning = false;

  constructor(jobId, job) {
    this.jobId = jobId;
    this.job = { jobId, kind: '…', status: 'QUEUED', attempt: 0 };
    this.#build();
    if (job) this.adopt(job);
    this.#start();
  }

  // --- connection

  /** Gets the job, then follows it: by a stream if a slot is free, by snapshots until then. */
  async #start() {
    for (let tries = 0; !this.#gone; tries += 1) {
      try {
        if (!this.known || tries > 0) this.adopt(await link.watch(getJob(this.jobId)));
        this.#slot = await takeSlot();
        if (this.#gone) return this.#releaseSlot();
        if (this.#slot) return this.#stream();
        this.#setWire({ state: 'waiting' });
      } catch (error) {
        if (!error.passing) return this.#setWire({ state: 'refused', error });
        this.#setWire({ state: 'offline', since: this.wire.since ?? Date.now() });
      }
      await Promise.race([sleep(POLL_MS * (0.5 + Math.random() / 2)), new Promise((resolve) => { this.wake = resolve; })]);
    }
    return undefined;
  }

  #stream() {
    this.#watch = watchJob(this.jobId, {
      cursor: this.#cursor,
      events: ['chart'],
      onEvent: (event) => this.apply(event),
      onSnapshot: (job) => this.adopt(job),
      onStatus: (status) => {
        if (status.state === 'ended' || status.state === 'refused') this.#releaseSlot();
        this.#setWire(status);
      },
    });
  }

  #releaseSlot() {
    this.#slot?.();
    this.#slot = null;
    for (const card of cards.values()) if (card.wire.state === 'waiting') card.hurry();
  }

  #setWire(wire) {
    this.wire = wire;
    link.render();
    this.#draw();
  }

  #stop() {
    this.#watch?.close();
    this.#watch = null;
    this.#releaseSlot();
  }

  /** The gateway is known to answer, or a slot is free: do not sit out the pause. */
  hurry() {
    this.wake?.();
    this.#watch?.retryNow();
  }

  // --- model

  /** Takes over a snapshot, unless the log has already told more. */
  adopt(job) {
    const head = Number.parseInt(job.cursor, 10) || 0;
    if (head >= this.seq) {
      this.head = head;
      this.job = { ...job };
      this.etaAt = Date.now();
      this.outcome = isTerminal(job.status) ? { result: job.result, error: job.error, cancelled: job.cancelled } : null;
    }
    this.#wasRunning ||= !isTerminal(job.status);
    this.known = true;
    this.#draw();
  }

  apply({ name, data, seq, cursor }) {
    this.#count(name, seq);
    this.#cursor = cursor;
    const value = data !== null && typeof data === 'object' ? data : {};
    if (name === 'log') this.#addLine({ seq, ...data });
    else if (name === 'gap') this.#gap(value, seq);
    else if (!JOB_EVENTS.has(name)) this.#addCustom(name, data);
    else if (seq > this.head) this.#advance(name, value); // A replay does not take the job back behind its snapshot.
    this.#draw();
  }

  #advance(name, value) {
    const { job } = this;
    switch (name) {
      case 'state':
        Object.assign(job, { status: value.status, attempt: value.attempt, runAt: value.runAt, cancelRequested: value.cancelRequested });
        if (value.status === 'PROCESSING') job.startedAt ??= value.at;
        this.outcome = null;
        break;
      case 'progress':
        job.progress = { ...value, percent: value.progress };
        this.etaAt = Date.now();
        break;
      case 'checkpoint':
        job.checkpoint = value;
        break;
      case 'complete':
        job.progress = { ...job.progress, percent: 100 };
        this.#end('COMPLETED', { result: value.result });
        break;
      case 'failed':
        this.#end('FAILED', { error: value });
        break;
      default:
        this.#end('CANCELLED', { cancelled: value });
    }
  }

  /** Kept on the element for whoever wants to check that no event is missing: events = seq - first + 1. */
  #count(name, seq) {
    const { dataset } = this.root;
    this.seq = seq;
    dataset.seq = seq;
    if (name === 'gap') return;
    dataset.first ??= seq;
    dataset.events = Number(dataset.events ?? 0) + 1;
  }

  #end(status, outcome) {
    this.job.status = status;
    this.outcome = outcome;
    if (!this.#wasRunning) return;
    announce(`${this.job.kind} ${shortId(this.jobId)}: ${STATUS_WORDS[status]}`);
    pollNow();
  }

  #gap({ from, to, reason, snapshot }, seq) {
    if (reason === 'reset') {
      // Another log: what was shown belongs to one that is gone.
      this.lines = [];
      this.dropped = 0;
      this.customs.clear();
      this.ui.lines.replaceChildren();
      this.#fresh = [];
      this.head = 0;
      this.seq = 0;
      delete this.root.dataset.first;
      delete this.root.dataset.events;
    }
    const text = reason === 'reset'
      ? 'The log was lost and begins anew; what was shown before it is gone.'
      : `Events ${from} to ${to} cannot be shown: ${reason === 'trimmed' ? 'they are no longer kept' : 'they could not be read'}.`;
    this.notices = [...this.notices, text].slice(-3);
    this.#addLine({ seq, text, level: 'warn', source: 'gap' });
    if (snapshot) this.adopt(snapshot);
    announce(`${this.job.kind} ${shortId(this.jobId)}: ${text}`);
  }

  #addLine(line) {
    this.lines.push(line);
    this.#fresh.push(line);
    if (this.lines.length > MAX_LINES) {
      this.dropped += 1;
      this.lines.shift();
    }
    if (this.#fresh.length > MAX_LINES) this.#fresh.shift();
    this.#draw();
  }

  #addCustom(name, data) {
    if (!this.customs.has(name) && this.customs.size >= MAX_CUSTOM_NAMES) this.customs.delete(this.customs.keys().next().value);
    const custom = this.customs.get(name) ?? { count: 0, points: [] };
    custom.count += 1;
    custom.data = data;
    if (Number.isFinite(data?.x) && Number.isFinite(data?.y)) custom.points = [...custom.points, [data.x, data.y]].slice(-MAX_POINTS);
    this.customs.set(name, custom);
  }

  // --- view

  #build() {
    const ui = {};
    this.ui = ui;
    const title = `job-${this.jobId}`;
    const label = `${title} ${title}-id`;
    const button = (key, text, action, more = {}) => {
      ui[key] = make('button', { type: 'button', 'data-testid': key, onclick: action, ...more }, text);
      return ui[key];
    };
    const part = (key, tag, attributes, ...children) => {
      ui[key] = make(tag, attributes, ...children);
      return ui[key];
    };
    this.root = make('article', { class: 'card', tabindex: '-1', 'aria-labelledby': label, 'data-testid': 'job-card', 'data-job-id': this.jobId },
      make('header', { class: 'card-head' },
        part('kind', 'h3', { id: title, 'data-testid': 'kind-name' }),
        part('badge', 'span', { class: 'badge', 'data-testid': 'status' }),
        make('span', { class: 'facts' },
          part('attempt', 'span', { 'data-testid': 'attempt' }),
          part('elapsed', 'span', { 'data-testid': 'elapsed' }),
          make('span', { class: 'mono', id: `${title}-id`, title: this.jobId }, shortId(this.jobId)))),
      part('wire', 'p', { class: 'wire', 'data-testid': 'connection', hidden: true }),
      make('div', { class: 'reading' },
        part('percent', 'span', { class: 'percent', 'data-testid': 'percent' }),
        part('step', 'span', { class: 'step', 'data-testid': 'step' }),
        part('eta', 'span', { class: 'eta', 'data-testid': 'eta' })),
      part('gauge', 'div', { class: 'gauge', role: 'progressbar', 'aria-labelledby': label, 'aria-valuemin': '0', 'aria-valuemax': '100', 'data-testid': 'progressbar' },
        make('div', { class: 'water' }), part('ticks', 'div', { class: 'ticks' })),
      part('measures', 'p', { class: 'measures', 'data-testid': 'measures' }),
      part('message', 'p', { class: 'message', 'data-testid': 'message' }),
      part('notices', 'ul', { class: 'notices', 'data-testid': 'notices' }),
      part('outcome', 'div', { class: 'outcome', 'data-testid': 'outcome', hidden: true }),
      part('customs', 'div', { class: 'customs', 'data-testid': 'customs' }),
      make('div', { class: 'log' },
        make('div', { class: 'log-bar' },
          part('count', 'span', { class: 'count', 'data-testid': 'log-count' }),
          button('to-end', 'Follow', () => this.#toEnd(), { class: 'quiet', hidden: true }),
          button('download', 'Download', () => this.#download(), { class: 'quiet' })),
        part('lines', 'div', { class: 'lines', tabindex: '0', role: 'log', 'aria-live': 'off', 'aria-label': `Log of ${shortId(this.jobId)}`, 'data-testid': 'log', onscroll: () => this.#scrolled() })),
      make('details', { class: 'given' },
        make('summary', {}, 'Input and facts'),
        part('facts', 'dl', {}),
        part('input', 'pre', { tabindex: '0', 'data-testid': 'given-input' })),
      make('div', { class: 'actions', role: 'group', 'aria-labelledby': label },
        button('cancel', 'Cancel', () => this.#act(() => cancelJob(this.jobId, { reason: 'cancelled in the console' }))),
        button('retry', 'Retry', () => this.#retry()),
        button('delete', 'Delete', () => this.#delete(), { class: 'danger', onblur: () => this.#disarm() }),
        part('trouble', 'span', { class: 'trouble', role: 'alert', 'data-testid': 'trouble' }),
        button('dismiss', 'Close', () => this.dismiss(), { class: 'last', title: 'Close this card; the job goes on' })));
    this.render();
  }

  #draw() {
    if (this.#dirty || this.#gone) return;
    this.#dirty = true;
    // Frames stop in a hidden tab; the model goes on, and one frame catches up.
    requestAnimationFrame(() => {
      this.#dirty = false;
      this.render();
    });
  }

  render() {
    const { ui, job, root } = this;
    const ended = isTerminal(job.status);
    root.dataset.status = job.status;
    root.dataset.wire = this.wire.state;
    setText(ui.kind, job.kind);
    setText(ui.badge, !ended && job.cancelRequested ? 'Cancelling…' : (STATUS_WORDS[job.status] ?? job.status));
    setText(ui.attempt, job.attempt > 1 ? `attempt ${job.attempt}` : '');
    this.#renderWire();
    this.#renderProgress(ended);
    this.#renderOutcome();
    this.#renderNotices();
    this.#renderCustoms();
    this.#renderLog();
    this.#renderFacts();
    ui.cancel.hidden = ended || !this.known;
    ui.cancel.disabled = Boolean(job.cancelRequested);
    ui.retry.hidden = !['FAILED', 'CANCELLED'].includes(job.status);
    ui.delete.hidden = !ended;
    setText(ui.trouble, this.trouble);
    this.tick();
  }

  /** What changes with the clock alone. */
  tick() {
    const { ui, job } = this;
    const end = job.finishedAt ? Date.parse(job.finishedAt) : Date.now();
    setText(ui.elapsed, job.startedAt ? formatSpan((end - Date.parse(job.startedAt)) / 1000) : '');
    const eta = job.status === 'PROCESSING' ? job.progress?.etaSeconds : undefined;
    const left = eta - (Date.now() - this.etaAt) / 1000;
    let text = '';
    if (Number.isFinite(left) && this.wire.state !== 'offline') text = left >= 1 ? `about ${formatSpan(left)} left` : 'moments left';
    else if (job.status === 'SCHEDULED' && job.runAt) text = `starts in ${formatSpan((Date.parse(job.runAt) - Date.now()) / 1000)}`;
    setText(ui.eta, text);
    if (this.wire.state === 'offline') this.#renderWire();
  }

  #renderWire() {
    const { state, since, error, reason } = this.wire;
    const ui = this.ui.wire;
    const planned = reason ? ` ${reason}:` : '';
    const words = {
      connecting: this.known ? '' : 'Connecting…',
      offline: `Offline,${planned} reconnecting… (${integer.format((Date.now() - since) / 1000)} s)`,
      polling: 'The stream does not come through; progress is asked for every few seconds, the log is behind.',
      waiting: `${MAX_STREAMS} jobs are already live in this browser; this one is asked for every few seconds until one ends.`,
      refused: reason === 'deleted' ? 'This job was deleted.' : `No longer watched: ${error?.message ?? reason}`,
    };
    const text = words[state] ?? '';
    ui.hidden = text === '';
    ui.dataset.state = state;
    setText(ui, text);
  }

  #renderProgress(ended) {
    const { ui, job } = this;
    const p = job.progress ?? {};
    const percent = Number.isFinite(p.percent) ? Math.min(100, Math.max(0, p.percent)) : null;
    const unknown = percent === null && job.status === 'PROCESSING';
    const digits = percent === null ? '' : percent >= 100 || percent % 1 === 0 ? String(Math.trunc(percent)) : (Math.floor(percent * 10) / 10).toFixed(1);
    ui.percent.replaceChildren(...(percent === null ? [unknown ? '–' : ''] : [digits, make('small', {}, '%')]));
    ui.gauge.toggleAttribute('data-unknown', unknown);
    ui.gauge.style.setProperty('--percent', percent ?? 0);
    ui.gauge.style.setProperty('--steps', p.steps ?? 1);
    // Ticks stand for steps only where the steps are parts of the same size.
    const even = p.steps > 1 && p.steps <= 60 && Math.abs((p.step - 0.5) / p.steps - percent / 100) <= 0.51 / p.steps;
    ui.ticks.hidden = !even;
    const step = p.step ? `Step ${p.step}${p.steps ? ` of ${p.steps}` : ''}` : '';
    ui.step.replaceChildren(...(step && p.stepName ? [make('span', { class: 'k' }, `${p.step}/${p.steps ?? '?'}`), p.stepName] : [step]));
    const measures = [];
    if (Number.isFinite(p.done)) measures.push(Number.isFinite(p.total) ? `${formatAmount(p.done, p.unit)} of ${formatMeasure(p.total, p.unit)}` : formatMeasure(p.done, p.unit));
    if (Number.isFinite(p.rate) && !ended) measures.push(`${formatMeasure(p.rate, p.unit)}/s`);
    if (job.checkpoint) measures.push(`checkpoint ${job.checkpoint.name || 'saved'}, ${formatAmount(job.checkpoint.size ?? 0, 'bytes')}`);
    ui.measures.replaceChildren(...measures.map((text) => make('span', {}, text)));
    setText(ui.message, ended ? '' : (p.message ?? ''));
    if (percent === null) ui.gauge.removeAttribute('aria-valuenow');
    else ui.gauge.setAttribute('aria-valuenow', digits);
    const spoken = [percent === null ? STATUS_WORDS[job.status] : `${digits}%`, [step, p.stepName].filter(Boolean).join(': ')].filter(Boolean);
    ui.gauge.setAttribute('aria-valuetext', spoken.join(', '));
  }

  #renderOutcome() {
    const { outcome, shownOutcome } = this;
    if (outcome === shownOutcome) return;
    this.shownOutcome = outcome;
    const parts = [];
    if (outcome?.error) parts.push(make('p', { class: 'bad' }, outcome.error.message || outcome.error.code), make('p', { class: 'hint' }, `code ${outcome.error.code}${outcome.error.retryable ? ', another attempt may succeed' : ''}`));
    else if (outcome?.cancelled) parts.push(make('p', {}, `Cancelled by ${outcome.cancelled.by}${outcome.cancelled.reason ? `: ${outcome.cancelled.reason}` : ''}`));
    else if (outcome && outcome.result !== undefined) parts.push(make('p', { class: 'hint' }, 'Result'), make('pre', { tabindex: '0' }, typeof outcome.result === 'string' ? outcome.result : showJson(outcome.result)));
    this.ui.outcome.hidden = parts.length === 0;
    this.ui.outcome.replaceChildren(...parts);
  }

  #renderNotices() {
    if (this.shownNotices === this.notices) return;
    this.shownNotices = this.notices;
    this.ui.notices.replaceChildren(...this.notices.map((text) => make('li', {}, text)));
  }

  #renderCustoms() {
    for (const [name, custom] of this.customs) {
      if (custom.shown === custom.count) continue;
      custom.shown = custom.count;
      const series = chartSeries(custom);
      const fresh = make('div', { class: 'custom', 'data-testid': 'custom', 'data-name': name },
        make('h4', {}, name, make('span', {}, custom.count > 1 ? `×${integer.format(custom.count)}` : '')),
        ...(series ? drawChart(name, series) : [make('pre', { tabindex: '0' }, showJson(custom.data))]));
      if (custom.element?.isConnected) custom.element.replaceWith(fresh);
      else this.ui.customs.append(fresh);
      custom.element = fresh;
    }
    for (const child of [...this.ui.customs.children]) if (!this.customs.has(child.dataset.name)) child.remove();
  }

  #renderLog() {
    const { lines } = this.ui;
    if (this.#fresh.length) {
      const rows = this.#fresh.map(({ seq, text, level, source }) => make('div', { class: `line ${level}`, 'data-seq': seq },
        make('span', { class: 'n', 'aria-hidden': 'true' }, String(seq)),
        make('span', { class: 't' }, source && source !== 'gap' ? make('span', { class: 'src' }, `${source}  `) : null, text)));
      this.#fresh = [];
      lines.append(...rows);
      for (let extra = lines.childElementCount - MAX_LINES; extra > 0; extra -= 1) lines.firstElementChild.remove();
      if (this.#follow) lines.scrollTop = lines.scrollHeight;
    }
    const total = this.lines.length + this.dropped;
    const word = total === 1 ? 'line' : 'lines';
    setText(this.ui.count, this.dropped ? `last ${integer.format(this.lines.length)} of ${integer.format(total)} lines` : `${integer.format(total)} ${word}`);
    this.ui['to-end'].hidden = this.#follow;
    this.ui.download.hidden = total === 0;
    lines.dataset.empty = isTerminal(this.job.status) ? 'No log lines.' : 'No log lines yet.';
  }

  #renderFacts() {
    const { job } = this;
    const facts = [['Job', this.jobId], ['Owner', [job.tenant, job.owner].filter(Boolean).join(' / ')], ['Created', job.createdAt], ['Finished', job.finishedAt], ['Cursor', this.#cursor]];
    const rows = facts.filter(([, value]) => value);
    const text = rows.map(([, value]) => value).join();
    if (this.shownFacts === text) return;
    this.shownFacts = text;
    this.ui.facts.replaceChildren(...rows.flatMap(([name, value]) => [make('dt', {}, name), make('dd', { class: 'mono' }, value)]));
    setText(this.ui.input, showJson(job.input));
  }

  #scrolled() {
    const { lines } = this.ui;
    this.#follow = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 30;
    this.ui['to-end'].hidden = this.#follow;
  }

  #toEnd() {
    this.#follow = true;
    this.ui.lines.scrollTop = this.ui.lines.scrollHeight;
    this.ui.lines.focus();
  }

  #download() {
    const text = this.lines.map(({ seq, level, source, text: line }) => `${seq}\t${level}\t${source}\t${line}\n`).join('');
    const url = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
    make('a', { href: url, download: `${this.job.kind}-${this.jobId}.log` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // --- actions

  async #act(action) {
    this.trouble = '';
    try {
      this.adopt(await link.watch(action()));
      return true;
    } catch (error) {
      this.trouble = explain(error);
      return false;
    } finally {
      this.#draw();
    }
  }

  async #retry() {
    if (!(await this.#act(() => retryJob(this.jobId)))) return;
    this.#stop();
    this.notices = [];
    this.#setWire({ state: 'connecting' });
    this.ui.cancel.hidden = false;
    this.ui.cancel.focus();
    this.#start();
  }

  /** The first press arms the button, the second deletes. */
  async #delete() {
    const button = this.ui.delete;
    if (!button.classList.contains('armed')) {
      button.classList.add('armed');
      setText(button, 'Delete job and log?');
      return;
    }
    this.#disarm();
    try {
      await link.watch(deleteJob(this.jobId));
      this.dismiss();
      recent.refresh();
    } catch (error) {
      this.trouble = explain(error);
      this.#draw();
    }
  }

  #disarm() {
    this.ui.delete.classList.remove('armed');
    setText(this.ui.delete, 'Delete');
  }

  dismiss() {
    const next = this.root.nextElementSibling ?? this.root.previousElementSibling;
    const hadFocus = this.root.contains(document.activeElement);
    this.#gone = true;
    this.#stop();
    this.wake?.();
    cards.delete(this.jobId);
    this.root.remove();
    rememberOpen();
    recent.render();
    link.render();
    $('empty').hidden = cards.size > 0;
    if (hadFocus) (next ?? $('start')).focus();
  }
}

// --- charts ------------------------------------------------------------------------------------

const axisName = ({ title, x, y }) => [title, [y, x].filter((name) => typeof name === 'string').join(' by ')].filter(Boolean).join(', ');

/** Reads {"series": […]}, {"x": […], "y": […]} or points collected from {"x", "y"}; null when it is no chart. */
function chartSeries({ data, points }) {
  const asPoints = (list) => list.slice(-MAX_POINTS)
    .map((item, index) => (Array.isArray(item) ? item : typeof item === 'object' && item ? [item.x, item.y] : [index, item]))
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const inner = (item) => item?.points ?? item?.data ?? item?.values ?? item?.y;
  let series = [];
  if (Array.isArray(data?.series)) {
    const many = data.series.every((item) => Array.isArray(inner(item)));
    series = many
      ? data.series.slice(0, 4).map((item) => ({ name: String(item.name ?? ''), points: asPoints(inner(item)) }))
      : [{ name: axisName(data), points: asPoints(data.series) }];
  } else if (Array.isArray(data?.x) && Array.isArray(data?.y)) {
    series = [{ name: '', points: asPoints(data.y.map((y, index) => [data.x[index], y])) }];
  } else if (points.length) {
    series = [{ name: '', points }];
  }
  return series.some(({ points: list }) => list.length) ? series : null;
}

function drawChart(name, series) {
  const all = series.flatMap(({ points }) => points);
  const [xs, ys] = [all.map(([x]) => x), all.map(([, y]) => y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const place = ([x, y]) => `${(((x - left) / (right - left || 1)) * 400).toFixed(1)},${(92 - ((y - low) / (high - low || 1)) * 88).toFixed(1)}`;
  const lines = series.map(({ points }, index) => make('polyline', { class: `s${index}`, points: points.map(place).join(' ') }));
  const label = `${name}: from ${short.format(low)} to ${short.format(high)}, now ${short.format(ys.at(-1))}`;
  const names = series.map((one) => one.name).filter(Boolean).join(', ');
  return [
    make('svg', { class: 'chart', viewBox: '0 0 400 96', preserveAspectRatio: 'none', role: 'img', 'aria-label': label, 'data-testid': 'chart' }, ...lines),
    make('div', { class: 'range' }, make('span', {}, `${short.format(low)} – ${short.format(high)}`), make('span', {}, names), make('span', {}, `now ${short.format(ys.at(-1))}`)),
  ];
}

// --- recent jobs -------------------------------------------------------------------------------

const recent = {
  jobs: [],

  async refresh() {
    try {
      this.jobs = (await link.watch(listJobs({ limit: 30 }))).jobs;
      this.render();
    } catch {
      // The lamp says it; the list stays as it was.
    }
  },

  render() {
    const list = $('recent');
    const focused = document.activeElement?.closest?.('#recent button')?.dataset.jobId;
    list.replaceChildren(...this.jobs.map((job) => make('li', {},
      make('button', { type: 'button', 'data-job-id': job.jobId, 'data-status': job.status, 'data-testid': 'recent-job', 'aria-pressed': String(cards.has(job.jobId)), title: `${STATUS_WORDS[job.status] ?? job.status}, ${job.jobId}`, onclick: () => openJob(job.jobId, job, { focus: true }) },
        make('span', { class: 'dot', 'aria-hidden': 'true' }),
        make('span', { class: 'name' }, job.kind, make('span', { class: 'mono' }, shortId(job.jobId)), make('span', { class: 'unseen' }, `, ${STATUS_WORDS[job.status] ?? job.status}`)),
        make('span', { class: 'when' }, formatAgo(job.createdAt))))));
    if (focused) list.querySelector(`[data-job-id="${CSS.escape(focused)}"]`)?.focus();
  },
};

// --- the form ----------------------------------------------------------------------------------

const launcher = {
  kinds: [],
  kind: undefined,
  asForm: false,
  /** What the input holds beside the form's fields. */
  rest: {},
  /** One key for one intention: pressing Start again after a lost answer cannot start a second job. */
  pending: { key: '', body: '' },

  async refresh() {
    let kinds;
    try {
      kinds = await link.watch(listKinds());
    } catch {
      return;
    }
    if (JSON.stringify(kinds) === JSON.stringify(this.kinds)) return;
    this.kinds = kinds;
    const select = $('kind');
    select.replaceChildren(...kinds.map(({ kind, live }) => make('option', { value: kind }, live ? kind : `${kind} (no worker)`)));
    if (!kinds.length) select.append(make('option', {}, 'none on offer'));
    select.disabled = kinds.length === 0;
    $('start').disabled = kinds.length === 0;
    $('first-run').hidden = !kinds.some(({ kind, live }) => kind === 'demo' && live);
    const wanted = kinds.find(({ kind }) => kind === this.kind?.kind) ?? kinds.find(({ kind }) => kind === 'demo') ?? kinds.find(({ live }) => live) ?? kinds[0];
    if (!wanted) setText($('kind-hint'), 'No worker has offered a kind yet; this list fills when one connects.');
    else if (wanted.kind !== this.kind?.kind) this.choose(wanted);
    select.value = wanted?.kind ?? select.value;
  },

  choose(kind) {
    this.kind = kind;
    setText($('kind-hint'), kind.description ?? '');
    setText($('form-error'), '');
    const fields = flatFields(kind.inputSchema);
    $('input-mode').hidden = !fields;
    $('input').value = JSON.stringify(kind.example ?? {}, null, 2);
    this.show(Boolean(fields));
  },

  /** Shows the input as a form or as JSON; what was typed goes along, and so does what the form has no field for. */
  show(asForm) {
    if (asForm) {
      const given = JSON.parse($('input').value.trim() || '{}');
      const fields = flatFields(this.kind.inputSchema);
      const shown = new Set(fields.map(({ name }) => name));
      this.rest = Object.fromEntries(Object.entries(given).filter(([name]) => !shown.has(name)));
      // In sight is what the example or the schema insists on; the rest is one step away.
      const inSight = ({ name, required }) => required || name in given || name in (this.kind.example ?? {});
      const more = fields.filter((field) => !inSight(field)).map((field) => makeField(field, given[field.name]));
      $('fields').replaceChildren(...fields.filter(inSight).map((field) => makeField(field, given[field.name])));
      if (more.length) $('fields').append(make('details', { class: 'more', open: more.length === fields.length }, make('summary', {}, 'More options'), make('div', { class: 'fields' }, ...more)));
    }
    this.asForm = asForm;
    $('fields').hidden = !asForm;
    $('input').hidden = asForm;
    setText($('input-mode'), asForm ? 'Edit as JSON' : 'Edit as form');
  },

  toggle() {
    setText($('form-error'), '');
    try {
      if (this.asForm) $('input').value = JSON.stringify(this.read(), null, 2);
      this.show(!this.asForm);
    } catch (error) {
      setText($('form-error'), `The input is not valid JSON: ${error.message}`);
    }
  },

  /** The input as a value; throws a SyntaxError when the JSON is broken. */
  read() {
    if (!this.asForm) return JSON.parse($('input').value.trim() || '{}');
    const value = { ...this.rest };
    for (const control of $('fields').querySelectorAll('[name]')) {
      const { type, default: usual } = this.kind.inputSchema.properties[control.name];
      if (type === 'boolean') {
        if (control.checked !== (usual ?? false)) value[control.name] = control.checked;
      } else if (control.value !== '') value[control.name] = ['integer', 'number'].includes(type) ? Number(control.value) : control.value;
    }
    return value;
  },

  async submit() {
    const error = $('form-error');
    setText(error, '');
    const { kind, inputSchema } = this.kind ?? {};
    if (!kind) return;
    let input;
    try {
      input = this.read();
    } catch (problem) {
      setText(error, `The input is not valid JSON: ${problem.message}`);
      (this.asForm ? $('fields').querySelector('[name]') : $('input')).focus();
      return;
    }
    const faults = faultsOf(input, inputSchema);
    if (faults.length) {
      setText(error, faults.join('\n'));
      return;
    }
    await this.send(kind, input);
  },

  async send(kind, input) {
    const body = JSON.stringify([kind, input]);
    if (this.pending.body !== body) this.pending = { key: randomKey(), body };
    $('start').setAttribute('aria-busy', 'true');
    try {
      const job = await link.watch(submitJob(kind, input, { idempotencyKey: this.pending.key }));
      this.pending = { key: '', body: '' };
      openJob(job.jobId, job);
      cards.get(job.jobId).root.scrollIntoView({ block: 'nearest' });
      announce(`${kind} ${shortId(job.jobId)} started`);
      recent.refresh();
    } catch (problem) {
      if (!problem.passing) this.pending = { key: '', body: '' };
      setText($('form-error'), explain(problem));
    } finally {
      $('start').removeAttribute('aria-busy');
    }
  },
};

/** The fields of a schema that a form can show; null when a required one is not among them. */
function flatFields(schema) {
  const required = schema?.required ?? [];
  const fields = Object.entries(schema?.properties ?? {})
    .filter(([, rules]) => Array.isArray(rules.enum) || ['string', 'integer', 'number', 'boolean'].includes(rules.type))
    .map(([name, rules]) => ({ name, rules, required: required.includes(name) }));
  const whole = required.every((name) => fields.some((field) => field.name === name));
  return whole && fields.length > 0 && fields.length <= 12 ? fields : null;
}

function makeField({ name, rules, required }, given) {
  const id = `field-${name}`;
  const hint = rules.description ? make('p', { class: 'hint', id: `${id}-hint` }, rules.description) : null;
  const label = make('label', { for: id }, name, required ? make('span', { class: 'need', 'aria-hidden': 'true' }, ' *') : null);
  const shared = { id, name, required, 'aria-describedby': hint ? `${id}-hint` : undefined, 'data-testid': id, 'data-type': rules.type };
  if (rules.type === 'boolean') {
    const box = make('input', { ...shared, type: 'checkbox', checked: (given ?? rules.default) === true });
    return make('div', { class: 'field wide' }, make('span', { class: 'tick' }, box, label), hint);
  }
  const numeric = ['integer', 'number'].includes(rules.type);
  const control = rules.enum
    ? make('select', shared, ...(required ? [] : [make('option', { value: '' })]), ...rules.enum.map((choice) => make('option', {}, String(choice))))
    : make('input', { ...shared, type: numeric ? 'number' : 'text', min: rules.minimum, max: rules.maximum, step: rules.type === 'number' ? 'any' : undefined, placeholder: rules.default, autocomplete: 'off' });
  control.value = given ?? control.value;
  return make('div', { class: numeric || rules.enum ? 'field' : 'field wide' }, label, control, hint);
}

/** Checks the plain rules of a schema before anything is sent; the worker checks all of them. */
function faultsOf(input, schema) {
  if (!schema || schema.type !== 'object') return [];
  if (input === null || typeof input !== 'object' || Array.isArray(input)) return ['The input must be a JSON object.'];
  const known = schema.properties ?? {};
  const faults = (schema.required ?? []).filter((name) => !(name in input)).map((name) => `${name} is required.`);
  for (const [name, value] of Object.entries(input)) {
    const rules = known[name];
    if (!rules) {
      if (schema.additionalProperties === false) faults.push(`${name} is not known; known are ${Object.keys(known).join(', ')}.`);
      continue;
    }
    const fits = { string: typeof value === 'string', integer: Number.isInteger(value), number: Number.isFinite(value), boolean: typeof value === 'boolean', array: Array.isArray(value) }[rules.type] ?? true;
    if (!fits) faults.push(`${name} must be ${/^[aeiou]/.test(rules.type) ? 'an' : 'a'} ${rules.type}.`);
    else if (rules.enum && !rules.enum.includes(value)) faults.push(`${name} must be one of ${rules.enum.join(', ')}.`);
    else if (value < rules.minimum) faults.push(`${name} must be at least ${rules.minimum}.`);
    else if (value > rules.maximum) faults.push(`${name} must be at most ${rules.maximum}.`);
  }
  return faults;
}

// --- start -------------------------------------------------------------------------------------

async function pollForever() {
  for (;;) {
    if (!document.hidden) await Promise.all([launcher.refresh(), recent.refresh()]);
    const pause = (link.since ? POLL_MS / 2 : POLL_MS) * (0.75 + Math.random() / 2);
    await Promise.race([sleep(pause), new Promise((resolve) => { pollNow = resolve; })]);
  }
}

$('kind').addEventListener('change', () => launcher.choose(launcher.kinds.find(({ kind }) => kind === $('kind').value)));
$('input-mode').addEventListener('click', () => launcher.toggle());
$('launcher').addEventListener('submit', (event) => {
  event.preventDefault();
  launcher.submit();
});
$('input').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) launcher.submit();
});
$('first-run').addEventListener('click', () => launcher.send('demo', launcher.kinds.find(({ kind }) => kind === 'demo')?.example ?? {}));
setText($('cli-submit'), `tidegate submit demo '{}' --watch${location.origin === 'http://127.0.0.1:8080' ? '' : ` --server ${location.origin}`}`);
setText($('curl-submit'), `curl -s ${location.origin}/api/jobs -H 'content-type: application/json' \\\n  -d '{"kind":"demo","input":{}}'\ncurl -N ${location.origin}/api/progress/JOB_ID`);
setInterval(() => {
  for (const card of cards.values()) card.tick();
  link.render();
}, 1_000);

for (const event of ['online', 'visibilitychange']) addEventListener(event, () => pollNow());

for (const jobId of recallOpen()) openJob(jobId);
pollForever();
