/**
 * The picture of one job: draws a `JobModel` as a card.
 *
 * `draw` may be called for every event; the card is rendered at most once a frame. Whatever changes with the clock
 * alone is in `tick`. What the buttons do is given from outside; the view changes nothing but its own elements.
 */

import { chartSeries, drawChart } from './chart.js';
import { make, setText } from './dom.js';
import {
  formatAmount, formatInteger, formatMeasure, formatPercent, formatSpan, shortId, showJson, statusWord,
} from './format.js';
import { LogView } from './log.js';
import { MAX_STREAMS } from './slots.js';

/** More steps than these are too narrow to be told apart by ticks. */
const MAX_TICKS = 60;
const DELETE = 'Delete';
const CONFIRM_DELETE = 'Delete job and log?';

export class CardView {
  #model;
  #log;
  #ui = {};
  #dirty = false;
  /** What is shown now, so that only what differs is made anew. */
  #outcome = null;
  #notices = [];
  #facts = '';
  /** The event shown for each custom name, with its element. */
  #customs = new Map();

  /**
   * @param {import('./job.js').JobModel} model
   * @param {Record<'cancel'|'retry'|'delete'|'close', () => void>} actions
   */
  constructor(model, actions) {
    this.#model = model;
    this.#log = new LogView(model);
    this.root = this.#build(model.jobId, actions);
    this.render();
  }

  #build(jobId, actions) {
    const title = `job-${jobId}`;
    const label = `${title} ${title}-id`;
    const part = (key, tag, attributes, ...children) => (this.#ui[key] = make(tag, attributes, ...children));
    const button = (key, text, onclick, more = {}) => (
      part(key, 'button', { type: 'button', 'data-testid': key, onclick, ...more }, text)
    );
    return make('article',
      { class: 'card', tabindex: '-1', 'aria-labelledby': label, 'data-testid': 'job-card', 'data-job-id': jobId },
      make('header', { class: 'card-head' },
        part('kind', 'h3', { id: title, 'data-testid': 'kind-name' }),
        part('badge', 'span', { class: 'badge', 'data-testid': 'status' }),
        make('span', { class: 'facts' },
          part('attempt', 'span', { 'data-testid': 'attempt' }),
          part('elapsed', 'span', { 'data-testid': 'elapsed' }),
          make('span', { class: 'mono', id: `${title}-id`, title: jobId }, shortId(jobId)))),
      part('wire', 'p', { class: 'wire', 'data-testid': 'connection', hidden: true }),
      make('div', { class: 'reading' },
        part('percent', 'span', { class: 'percent', 'data-testid': 'percent' }),
        part('step', 'span', { class: 'step', 'data-testid': 'step' }),
        part('eta', 'span', { class: 'eta', 'data-testid': 'eta' })),
      part('gauge', 'div', {
        class: 'gauge',
        role: 'progressbar',
        'aria-labelledby': label,
        'aria-valuemin': '0',
        'aria-valuemax': '100',
        'data-testid': 'progressbar',
      }, make('div', { class: 'water' }), part('ticks', 'div', { class: 'ticks' })),
      part('measures', 'p', { class: 'measures', 'data-testid': 'measures' }),
      part('message', 'p', { class: 'message', 'data-testid': 'message' }),
      part('notices', 'ul', { class: 'notices', 'data-testid': 'notices' }),
      part('outcome', 'div', { class: 'outcome', 'data-testid': 'outcome', hidden: true }),
      part('customs', 'div', { class: 'customs', 'data-testid': 'customs' }),
      this.#log.root,
      make('details', { class: 'given' },
        make('summary', {}, 'Input and facts'),
        part('facts', 'dl', {}),
        part('input', 'pre', { tabindex: '0', 'data-testid': 'given-input' })),
      make('div', { class: 'actions', role: 'group', 'aria-labelledby': label },
        button('cancel', 'Cancel', actions.cancel),
        button('retry', 'Retry', actions.retry),
        button('delete', DELETE, () => this.#pressDelete(actions.delete), {
          class: 'danger',
          onblur: () => this.#disarm(),
        }),
        part('trouble', 'span', { class: 'trouble', role: 'alert', 'data-testid': 'trouble' }),
        button('dismiss', 'Close', actions.close, { class: 'last', title: 'Close this card; the job goes on' })));
  }

  /** The first press arms the button, the second deletes. */
  #pressDelete(action) {
    const button = this.#ui.delete;
    if (button.classList.contains('armed')) {
      this.#disarm();
      action();
    } else {
      button.classList.add('armed');
      setText(button, CONFIRM_DELETE);
    }
  }

  #disarm() {
    this.#ui.delete.classList.remove('armed');
    setText(this.#ui.delete, DELETE);
  }

  /** Moves the focus to Cancel, which takes the place of a Retry that was pressed. */
  focusCancel() {
    this.#ui.cancel.hidden = false;
    this.#ui.cancel.focus();
  }

  /** Renders in the next frame. Frames stop in a hidden tab; the model goes on, and one frame catches up. */
  draw() {
    if (this.#dirty) return;
    this.#dirty = true;
    requestAnimationFrame(() => {
      this.#dirty = false;
      this.render();
    });
  }

  render() {
    const { job, ended, known, trouble } = this.#model;
    const ui = this.#ui;
    setText(ui.kind, job.kind);
    setText(ui.badge, !ended && job.cancelRequested ? 'Cancelling…' : statusWord(job.status));
    setText(ui.attempt, job.attempt > 1 ? `attempt ${job.attempt}` : '');
    this.#renderWire();
    this.#renderProgress();
    this.#renderOutcome();
    this.#renderNotices();
    this.#renderCustoms();
    this.#log.render();
    this.#renderFacts();
    ui.cancel.hidden = ended || !known;
    ui.cancel.disabled = Boolean(job.cancelRequested);
    ui.retry.hidden = !['FAILED', 'CANCELLED'].includes(job.status);
    ui.delete.hidden = !ended;
    setText(ui.trouble, trouble);
    this.tick();
    this.#tell();
  }

  /** Kept on the element for styles, and for whoever checks that no event is missing: events = seq - first + 1. */
  #tell() {
    const { job: { status }, wire: { state: wire }, first = '', seq, events } = this.#model;
    Object.assign(this.root.dataset, { status, wire, first, seq, events });
  }

  /** What changes with the clock alone. */
  tick() {
    const { job, wire } = this.#model;
    const end = job.finishedAt ? Date.parse(job.finishedAt) : Date.now();
    setText(this.#ui.elapsed, job.startedAt ? formatSpan((end - Date.parse(job.startedAt)) / 1000) : '');
    setText(this.#ui.eta, this.#remaining());
    if (wire.state === 'offline') this.#renderWire();
  }

  #remaining() {
    const { job, wire, etaAt } = this.#model;
    const eta = job.status === 'PROCESSING' ? job.progress?.etaSeconds : undefined;
    if (Number.isFinite(eta) && wire.state !== 'offline') {
      const left = eta - (Date.now() - etaAt) / 1000;
      return left >= 1 ? `about ${formatSpan(left)} left` : 'moments left';
    }
    if (job.status !== 'SCHEDULED' || !job.runAt) return '';
    return `starts in ${formatSpan((Date.parse(job.runAt) - Date.now()) / 1000)}`;
  }

  #renderWire() {
    const { state, since, error, reason } = this.#model.wire;
    const words = {
      connecting: () => (this.#model.known ? '' : 'Connecting…'),
      offline: () => {
        const planned = reason ? ` ${reason}:` : '';
        return `Offline,${planned} reconnecting… (${formatInteger((Date.now() - since) / 1000)} s)`;
      },
      polling: () => 'The stream does not come through; progress is asked for every few seconds, the log is behind.',
      waiting: () => `${MAX_STREAMS} jobs are already live in this browser; `
        + 'this one is asked for every few seconds until one ends.',
      refused: () => (
        reason === 'deleted' ? 'This job was deleted.' : `No longer watched: ${error?.message ?? reason}`
      ),
    };
    const text = words[state]?.() ?? '';
    const line = this.#ui.wire;
    line.hidden = text === '';
    line.dataset.state = state;
    setText(line, text);
  }

  #renderProgress() {
    const { job, ended } = this.#model;
    const ui = this.#ui;
    const p = job.progress ?? {};
    const percent = Number.isFinite(p.percent) ? Math.min(100, Math.max(0, p.percent)) : null;
    const unknown = percent === null && job.status === 'PROCESSING';
    const digits = percent === null ? '' : formatPercent(percent);
    ui.percent.replaceChildren(...(percent === null ? [unknown ? '–' : ''] : [digits, make('small', {}, '%')]));
    ui.gauge.toggleAttribute('data-unknown', unknown);
    ui.gauge.style.setProperty('--percent', percent ?? 0);
    ui.gauge.style.setProperty('--steps', p.steps ?? 1);
    // Ticks stand for steps only where the steps are parts of the same size.
    const offset = Math.abs((p.step - 0.5) / p.steps - percent / 100);
    ui.ticks.hidden = !(p.steps > 1 && p.steps <= MAX_TICKS && offset <= 0.51 / p.steps);
    const step = p.step ? `Step ${p.step}${p.steps ? ` of ${p.steps}` : ''}` : '';
    const named = step && p.stepName;
    const number = make('span', { class: 'k' }, `${p.step}/${p.steps ?? '?'}`);
    ui.step.replaceChildren(...(named ? [number, p.stepName] : [step]));
    ui.measures.replaceChildren(...this.#measures(p).map((text) => make('span', {}, text)));
    setText(ui.message, ended ? '' : (p.message ?? ''));
    if (percent === null) ui.gauge.removeAttribute('aria-valuenow');
    else ui.gauge.setAttribute('aria-valuenow', digits);
    const stepSpoken = [step, p.stepName].filter(Boolean).join(': ');
    const spoken = [percent === null ? statusWord(job.status) : `${digits}%`, stepSpoken].filter(Boolean);
    ui.gauge.setAttribute('aria-valuetext', spoken.join(', '));
  }

  #measures({ done, total, unit, rate }) {
    const { job: { checkpoint }, ended } = this.#model;
    const measures = [];
    if (Number.isFinite(done) && Number.isFinite(total)) {
      measures.push(`${formatAmount(done, unit)} of ${formatMeasure(total, unit)}`);
    } else if (Number.isFinite(done)) {
      measures.push(formatMeasure(done, unit));
    }
    if (Number.isFinite(rate) && !ended) measures.push(`${formatMeasure(rate, unit)}/s`);
    if (checkpoint) {
      measures.push(`checkpoint ${checkpoint.name || 'saved'}, ${formatAmount(checkpoint.size ?? 0, 'bytes')}`);
    }
    return measures;
  }

  #renderOutcome() {
    const { outcome } = this.#model;
    if (this.#outcome === outcome) return;
    this.#outcome = outcome;
    const parts = outcome ? describeOutcome(outcome) : [];
    this.#ui.outcome.hidden = parts.length === 0;
    this.#ui.outcome.replaceChildren(...parts);
  }

  #renderNotices() {
    const { notices } = this.#model;
    if (this.#notices === notices) return;
    this.#notices = notices;
    this.#ui.notices.replaceChildren(...notices.map((text) => make('li', {}, text)));
  }

  #renderCustoms() {
    const { customs } = this.#model;
    for (const [name, { element }] of this.#customs) {
      if (customs.has(name)) continue;
      element.remove();
      this.#customs.delete(name);
    }
    for (const [name, custom] of customs) {
      const shown = this.#customs.get(name);
      if (shown?.custom === custom) continue;
      const element = makeCustom(name, custom);
      if (shown) shown.element.replaceWith(element);
      else this.#ui.customs.append(element);
      this.#customs.set(name, { custom, element });
    }
  }

  #renderFacts() {
    const { job, jobId, cursor } = this.#model;
    const facts = [
      ['Job', jobId],
      ['Owner', [job.tenant, job.owner].filter(Boolean).join(' / ')],
      ['Created', job.createdAt],
      ['Finished', job.finishedAt],
      ['Cursor', cursor],
    ].filter(([, value]) => value);
    const text = facts.join();
    if (this.#facts === text) return;
    this.#facts = text;
    const rows = facts.flatMap(([name, value]) => [make('dt', {}, name), make('dd', { class: 'mono' }, value)]);
    this.#ui.facts.replaceChildren(...rows);
    setText(this.#ui.input, showJson(job.input));
  }
}

function describeOutcome({ result, error, cancelled }) {
  if (error) {
    const hope = error.retryable ? ', another attempt may succeed' : '';
    return [
      make('p', { class: 'bad' }, error.message || error.code),
      make('p', { class: 'hint' }, `code ${error.code}${hope}`),
    ];
  }
  if (cancelled) {
    return [make('p', {}, `Cancelled by ${cancelled.by}${cancelled.reason ? `: ${cancelled.reason}` : ''}`)];
  }
  if (result === undefined) return [];
  const text = typeof result === 'string' ? result : showJson(result);
  return [make('p', { class: 'hint' }, 'Result'), make('pre', { tabindex: '0' }, text)];
}

/** A custom event: a chart if it can be one, else its JSON. */
function makeCustom(name, custom) {
  const series = chartSeries(custom);
  const times = custom.count > 1 ? `×${formatInteger(custom.count)}` : '';
  return make('div', { class: 'custom', 'data-testid': 'custom', 'data-name': name },
    make('h4', {}, name, make('span', {}, times)),
    ...(series ? drawChart(name, series) : [make('pre', { tabindex: '0' }, showJson(custom.data))]));
}
