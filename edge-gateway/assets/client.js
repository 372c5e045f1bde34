/**
 * Tidegate's browser module: submit jobs, steer them, and follow their logs over the native `EventSource`.
 *
 *     import { submitJob, watchJob } from '/client.js';
 *     const job = await submitJob('demo', { steps: 4 });
 *     watchJob(job.jobId, { onEvent: (event) => console.log(event.seq, event.name, event.data) });
 *
 * Invariant: `onEvent` sees every event of a job once and in order, across reconnects; what cannot be had any more
 * is said by an event named `gap`. The module keeps no state outside a watch, renders nothing, and depends on nothing.
 *
 * Where the gateway asks who calls, pages of its own use the session cookie ({@link signIn}) and need no more; all others
 * pass `token`, a text or a function that gives one. A stream is then opened with a ticket, and, when that has ended, with
 * another one, as long as there is a token.
 *
 * @module tidegate
 */

/** A bearer token or API key, or what gives the one that is good now. @typedef {string|(() => string|Promise<string>)} Token */

/**
 * A job as the gateway describes it; absent fields are unknown or do not apply.
 * @typedef {object} Job
 * @property {string} jobId
 * @property {string} kind
 * @property {'SCHEDULED'|'QUEUED'|'PROCESSING'|'COMPLETED'|'FAILED'|'CANCELLED'} status
 * @property {number} attempt The current or last attempt, from 1; 0 before the first.
 * @property {unknown} input
 * @property {string} createdAt RFC 3339, as all times.
 * @property {string} [startedAt]
 * @property {string} [finishedAt]
 * @property {string} [runAt]
 * @property {Progress} [progress]
 * @property {{name: string, size: number}} [checkpoint]
 * @property {{by: string, reason?: string, deadline?: string}} [cancelRequested]
 * @property {unknown} [result]
 * @property {{code: string, message: string, retryable: boolean}} [error]
 * @property {{by: string, reason?: string}} [cancelled]
 * @property {string} cursor The log's head, `<seq>-<epoch>`.
 */

/**
 * How far a job is.
 * @typedef {object} Progress
 * @property {number|null} [percent] 0 to 100; null when unknown. The event calls it `progress`.
 * @property {number} [done]
 * @property {number} [total]
 * @property {string} [unit] What done and total count.
 * @property {number} [step] From 1.
 * @property {number} [steps]
 * @property {string} [stepName]
 * @property {number} [rate] Units a second.
 * @property {number} [etaSeconds]
 * @property {string} [message]
 */

/**
 * One event of a job's log. A log line's data is normalised to {@link LogLine}.
 * @typedef {object} JobEvent
 * @property {string} name `state`, `progress`, `log`, `checkpoint`, `complete`, `failed`, `cancelled`, `gap`, or a custom name.
 * @property {any} data
 * @property {string} cursor Resume here: pass it as `cursor` to another watch.
 * @property {number} seq
 */

/** @typedef {{text: string, level: 'debug'|'info'|'warn'|'error', source: string}} LogLine */

/**
 * How a watch stands.
 * - `connecting`: the first connection is being made.
 * - `live`: the stream is open.
 * - `offline`: the stream broke at `since` (ms); the next try is at `retryAt` (ms) if this module makes it.
 * - `polling`: the gateway answers but its stream does not arrive (a buffering proxy); only snapshots come.
 * - `ended`: the job has ended and its log was read to the end; `job` is the last snapshot.
 * - `refused`: the watch is over for good, because of `error` or a goodbye's `reason`.
 * @typedef {object} WatchStatus
 * @property {'connecting'|'live'|'offline'|'polling'|'ended'|'refused'} state
 * @property {number} [since]
 * @property {number} [retryAt]
 * @property {string} [reason]
 * @property {Job} [job]
 * @property {Error} [error]
 */

/**
 * @typedef {object} WatchOptions
 * @property {string} [base] The gateway's origin and path prefix; the page's own origin by default.
 * @property {Token} [token] Who asks, where that is asked and there is no session.
 * @property {string} [cursor] Read on after this event; from the oldest event kept by default.
 * @property {string[]} [events] Custom event names to expect. Others are noticed by their hole in `seq` and fetched.
 * @property {number} [silenceMs] How long nothing may come before the snapshot is asked whether something should have; 20,000.
 * @property {number} [pollMs] The pause between snapshots while polling; 3,000.
 * @property {number} [retryMs] The first pause of the back-off, doubled up to 15 s and jittered; 1,000.
 * @property {(event: JobEvent) => void} [onEvent]
 * @property {(status: WatchStatus) => void} [onStatus]
 * @property {(job: Job) => void} [onSnapshot] Called with every snapshot the watch had to fetch.
 */

const TERMINAL_STATUS = new Set(['COMPLETED', 'FAILED', 'CANCELLED']);
const TERMINAL_EVENTS = new Set(['complete', 'failed', 'cancelled']);
const LOG_EVENTS = ['state', 'progress', 'log', 'checkpoint', ...TERMINAL_EVENTS, 'gap'];
const REQUEST_TIMEOUT_MS = 10_000;
/** Failures in a row after which the browser's own reconnecting is taken over, so that back-off and jitter apply. */
const TAKE_OVER_AFTER = 3;
/** Failures in a row after which snapshots are polled and the stream is tried only now and then. */
const POLL_AFTER = 6;
/** While polling, every so-many-th answer is followed by a try of the stream. */
const STREAM_EVERY = 8;
/** A silent stream takes long to notice, so it weighs as much as this many failures. */
const SILENCE_WEIGHT = 3;
const MAX_BACKOFF_MS = 15_000;

// --- errors ------------------------------------------------------------------------------------

/** The gateway refused: an RFC 9457 problem document. `slug` is the stable name, such as `job-not-found`. */
export class ProblemError extends Error {
  /** @param {number} status @param {Record<string, any>} problem @param {number} [retryAfter] seconds */
  constructor(status, problem, retryAfter) {
    super(problem.detail || problem.title || `the gateway answered ${status}`);
    this.name = 'ProblemError';
    this.status = status;
    this.problem = problem;
    this.slug = String(problem.type ?? '').replace(/^.*\/problems\//, '') || 'unknown';
    /** @type {{field: string, description: string}[]} */
    this.fields = Array.isArray(problem.fields) ? problem.fields : [];
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 429 || this.status >= 500;
  }
}

/** No answer: the network, the gateway, or the way between is down. */
export class NetworkError extends Error {
  /** @param {unknown} cause */
  constructor(cause) {
    super('the gateway cannot be reached', { cause });
    this.name = 'NetworkError';
    this.passing = true;
  }
}

/**
 * @param {string} base @param {string} path
 * @param {{method?: string, body?: unknown, headers?: Record<string, string>, token?: Token, signal?: AbortSignal}} [how]
 * @returns {Promise<any>}
 */
async function request(base, path, { method = 'GET', body, headers = {}, token, signal } = {}) {
  const timeout = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
  const credential = await authorization(token);
  let response;
  let text;
  try {
    response = await fetch(base + path, {
      method,
      headers: { accept: 'application/json', ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...credential, ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store',
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    text = await response.text();
  } catch (cause) {
    if (signal?.aborted) throw cause;
    throw new NetworkError(cause);
  }
  let json;
  try {
    json = text === '' ? undefined : JSON.parse(text);
  } catch {
    json = undefined; // A proxy's error page: the status says enough.
  }
  if (response.ok) return json;
  const retryAfter = Number(response.headers.get('retry-after')) || undefined;
  throw new ProblemError(response.status, json && typeof json === 'object' ? json : {}, retryAfter);
}

/** @param {Token} [token] @returns {Promise<Record<string, string>>} the header that presents it */
async function authorization(token) {
  const text = typeof token === 'function' ? await token() : token;
  return text ? { authorization: `Bearer ${text}` } : {};
}

/** @param {string} jobId */
const jobPath = (jobId, rest = '') => `/api/jobs/${encodeURIComponent(jobId)}${rest}`;

// --- requests ----------------------------------------------------------------------------------

/**
 * Submits a job. With the same `idempotencyKey` and the same body it may safely be called again after a failure.
 * @param {string} kind
 * @param {unknown} [input]
 * @param {{base?: string, options?: object, idempotencyKey?: string, token?: Token, signal?: AbortSignal}} [how]
 * @returns {Promise<Job>}
 */
export function submitJob(kind, input = {}, { base = '', options, idempotencyKey, token, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = idempotencyKey ? { 'idempotency-key': idempotencyKey } : {};
  return request(base, '/api/jobs', { method: 'POST', body: { kind, input, options }, headers, token, signal });
}

/** @param {string} jobId @param {{base?: string, token?: Token, signal?: AbortSignal}} [how] @returns {Promise<Job>} */
export function getJob(jobId, { base = '', token, signal } = {}) {
  return request(base, jobPath(jobId), { token, signal });
}

/**
 * One page of jobs, newest first; pass `next` as `cursor` for the page after.
 * @param {{base?: string, limit?: number, cursor?: string, status?: string, kind?: string, token?: Token, signal?: AbortSignal}} [how]
 * @returns {Promise<{jobs: Job[], next?: string}>}
 */
export function listJobs({ base = '', token, signal, ...filters } = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) if (value !== undefined && value !== '') query.set(name, String(value));
  return request(base, `/api/jobs${query.size ? `?${query}` : ''}`, { token, signal });
}

/**
 * The kinds of job on offer.
 * @param {{base?: string, token?: Token, signal?: AbortSignal}} [how]
 * @returns {Promise<{kind: string, description: string, inputSchema?: object, example?: unknown, live: boolean}[]>}
 */
export async function listKinds({ base = '', token, signal } = {}) {
  return (await request(base, '/api/kinds', { token, signal })).kinds;
}

/** @param {string} jobId @param {{base?: string, reason?: string, token?: Token, signal?: AbortSignal}} [how] @returns {Promise<Job>} */
export function cancelJob(jobId, { base = '', reason, token, signal } = {}) {
  return request(base, jobPath(jobId, '/cancel'), { method: 'POST', body: { reason }, token, signal });
}

/** @param {string} jobId @param {{base?: string, token?: Token, signal?: AbortSignal}} [how] @returns {Promise<Job>} */
export function retryJob(jobId, { base = '', token, signal } = {}) {
  return request(base, jobPath(jobId, '/retry'), { method: 'POST', token, signal });
}

/** @param {string} jobId @param {{base?: string, token?: Token, signal?: AbortSignal}} [how] @returns {Promise<void>} */
export async function deleteJob(jobId, { base = '', token, signal } = {}) {
  await request(base, jobPath(jobId), { method: 'DELETE', token, signal });
}

/**
 * Exchanges a token for a session cookie, on pages that the gateway itself serves.
 * @param {Token} token @param {{base?: string, signal?: AbortSignal}} [how]
 * @returns {Promise<{tenant: string, subject: string, scopes: string[], expiresAt?: string}>}
 */
export function signIn(token, { base = '', signal } = {}) {
  return request(base, '/api/session', { method: 'POST', token, signal });
}

/** Who the gateway takes this page for. @param {{base?: string, token?: Token, signal?: AbortSignal}} [how] */
export function whoAmI({ base = '', token, signal } = {}) {
  return request(base, '/api/session', { token, signal });
}

/** Forgets the session cookie. @param {{base?: string, signal?: AbortSignal}} [how] @returns {Promise<void>} */
export async function signOut({ base = '', signal } = {}) {
  await request(base, '/api/session', { method: 'DELETE', signal });
}

// --- reading -----------------------------------------------------------------------------------

/** Whether a job in this status has ended. @param {string} status */
export const isTerminal = (status) => TERMINAL_STATUS.has(status);

/** Takes `<seq>-<epoch>` apart; null when it is no cursor. @param {unknown} text @returns {{seq: number, epoch: string}|null} */
export function parseCursor(text) {
  const match = /^(\d{1,15})-([A-Za-z0-9._-]+)$/.exec(String(text ?? ''));
  return match && { seq: Number(match[1]), epoch: match[2] };
}

/** A log event's data, a plain string or an object, as one shape. @param {any} data @returns {LogLine} */
export function normalizeLog(data) {
  if (data !== null && typeof data === 'object') {
    const level = ['debug', 'info', 'warn', 'error'].includes(data.level) ? data.level : 'info';
    return { text: String(data.text ?? ''), level, source: String(data.source ?? '') };
  }
  return { text: String(data ?? ''), level: 'info', source: '' };
}

/**
 * Reads an SSE response. An unfinished last event is dropped, as the standard demands.
 * @param {string} url @param {AbortSignal} signal @param {Token} [token]
 * @returns {AsyncGenerator<{event: string, data: string, id: string}>}
 */
async function* readStream(url, signal, token) {
  const headers = { accept: 'text/event-stream, */*;q=0.1', ...(await authorization(token)) };
  const response = await fetch(url, { headers, cache: 'no-store', signal });
  if (response.status !== 200 || !response.body) throw new NetworkError(`status ${response.status}`);
  const text = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = { event: 'message', data: /** @type {string[]} */ ([]), id: '' };
  for (;;) {
    const { done, value } = await text.read();
    if (done) return;
    const lines = (rest + value).split('\n'); // The gateway ends its lines with LF only.
    rest = lines.pop() ?? '';
    for (const line of lines) {
      const [, field, content] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? [];
      if (line === '') {
        if (event.data.length) yield { ...event, data: event.data.join('\n') };
        event = { event: 'message', data: [], id: event.id };
      } else if (field === 'data') event.data.push(content ?? '');
      else if (field === 'event' || field === 'id') event[field] = content ?? '';
    }
  }
}

// --- watching ----------------------------------------------------------------------------------

/**
 * Follows a job's log to its end: what is stored first, then live.
 *
 * The browser's `EventSource` reconnects by itself after a cut. This watch adds what it cannot do: it goes on after a
 * permanent close and after repeated failures (with back-off and jitter), notices a stream that is open but silent,
 * falls back to polling, and closes when the job has really ended.
 *
 * @param {string} jobId
 * @param {WatchOptions} [options]
 * @returns {{close(): void, retryNow(): void, readonly cursor: string|undefined}}
 */
export function watchJob(jobId, options = {}) {
  const watch = new Watch(jobId, options);
  return {
    close: () => watch.close(),
    retryNow: () => watch.retryNow(),
    get cursor() {
      return watch.cursor;
    },
  };
}

class Watch {
  #jobId;
  #options;
  #names;
  /** @type {EventSource|null} */
  #source = null;
  /** The last event delivered. @type {{seq: number, epoch: string}|null} */
  #position;
  /** Events that wait while a hole before them is being fetched. @type {JobEvent[]|null} */
  #waiting = null;
  #failures = 0;
  /** When the stream broke; 0 while it is whole. */
  #since = 0;
  /** Whether the last event was a terminal one, after which the server ends the stream. */
  #atEnd = false;
  /** What the server said before the cut it announced. @type {{reason: string, reconnect?: boolean}|null} */
  #goodbye = null;
  /** @type {number|undefined} */
  #silence;
  /** @type {number|undefined} */
  #retry;
  #abort = new AbortController();
  #onOnline = () => this.retryNow();

  constructor(jobId, options) {
    this.#jobId = jobId;
    this.#options = { base: '', silenceMs: 20_000, pollMs: 3_000, retryMs: 1_000, ...options };
    this.#names = new Set([...LOG_EVENTS, 'connected', 'goodbye', ...(options.events ?? [])]);
    this.#position = parseCursor(options.cursor);
    addEventListener('online', this.#onOnline);
    this.#say({ state: 'connecting' });
    this.#open();
  }

  get cursor() {
    return this.#position ? `${this.#position.seq}-${this.#position.epoch}` : undefined;
  }

  close() {
    this.#abort.abort();
    this.#dropSource();
    clearTimeout(this.#retry);
    removeEventListener('online', this.#onOnline);
  }

  /** Tries again at once when a retry is pending, for instance because the network came back. */
  retryNow() {
    if (this.#retry === undefined || this.#abort.signal.aborted) return;
    clearTimeout(this.#retry);
    this.#probe();
  }

  #say(status) {
    if (!this.#abort.signal.aborted) this.#options.onStatus?.(status);
  }

  #finish(status) {
    this.#say(status);
    this.close();
  }

  #url(ticket = '') {
    const path = `${this.#options.base}/api/progress/${encodeURIComponent(this.#jobId)}`;
    // A ticket knows its cursor: beside it, a cursor would tell whoever reads the address what proves a reconnect.
    if (ticket) return `${path}?ticket=${ticket}`;
    return this.#position ? `${path}?lastEventId=${this.cursor}` : path;
  }

  #open() {
    this.#dropSource();
    if (this.#options.token === undefined) this.#connect('');
    else this.#openWithTicket();
  }

  /** `EventSource` cannot set headers: what it may say stands in its URL, and is good for this stream only. */
  async #openWithTicket() {
    const { base, token } = this.#options;
    try {
      const order = { method: 'POST', body: { jobId: this.#jobId, cursor: this.cursor }, token, signal: this.#abort.signal };
      const { ticket } = await request(base, '/api/tickets', order);
      if (!this.#abort.signal.aborted) this.#connect(ticket);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (error.passing === false) this.#finish({ state: 'refused', error });
      else {
        this.#failures += 1;
        this.#tryLater({ atLeastMs: (error.retryAfter ?? 0) * 1_000 });
      }
    }
  }

  #connect(ticket) {
    const source = new EventSource(this.#url(ticket));
    this.#source = source;
    source.onerror = () => source === this.#source && this.#onError(source);
    for (const name of this.#names) source.addEventListener(name, this.#onMessage);
    this.#expectTraffic();
  }

  #dropSource() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#silence);
  }

  #listenTo(name) {
    if (this.#names.has(name)) return;
    this.#names.add(name);
    this.#source?.addEventListener(name, this.#onMessage);
  }

  /** @param {MessageEvent} message */
  #onMessage = (message) => {
    if (message.target !== this.#source) return;
    let data;
    try {
      data = JSON.parse(message.data);
    } catch {
      data = message.data;
    }
    this.#expectTraffic();
    if (message.type === 'connected') return this.#onConnected(data);
    if (message.type === 'goodbye') {
      this.#goodbye = data;
      if (data.reason === 'expired' && this.#options.token !== undefined) {
        // The ticket has ended, or the token behind it; whoever gives tokens may have another one.
        this.#dropSource();
        this.#failures += 1;
        this.#tryLater({ quiet: true });
      } else if (data.reconnect === false) this.#finish({ state: 'refused', reason: data.reason });
      return undefined;
    }
    return this.#take({ name: message.type, data, cursor: message.lastEventId });
  };

  #onConnected(data) {
    this.#position ??= parseCursor(data.cursor);
    this.#since = 0;
    this.#goodbye = null;
    this.#say({ state: 'live' });
  }

  /** Puts an event in its place: delivers it, drops it as a duplicate, or has the hole before it fetched first. */
  #take(event) {
    if (this.#waiting) {
      this.#waiting.push(event);
      return;
    }
    const at = parseCursor(event.cursor);
    if (!at) return;
    const last = this.#position;
    if (event.name !== 'gap' && last && last.epoch === at.epoch) {
      if (at.seq <= last.seq) return;
      if (at.seq > last.seq + 1) {
        this.#waiting = [event];
        this.#fetchHole(at.seq);
        return;
      }
    }
    this.#deliver(event, at);
  }

  #deliver(event, at) {
    this.#position = at;
    this.#failures = 0; // Only a stream that delivers is a healthy one.
    this.#atEnd = TERMINAL_EVENTS.has(event.name);
    const data = event.name === 'log' ? normalizeLog(event.data) : event.data;
    this.#options.onEvent?.({ ...event, data, seq: at.seq });
    if (this.#atEnd) this.#settle();
  }

  /**
   * A hole in `seq` is an event whose name nobody listens for: `EventSource` shows only names that were asked for.
   * Reads the missing stretch with `fetch`, learns the names, and goes on with the events that waited.
   */
  async #fetchHole(upTo) {
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, this.#abort.signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]);
    try {
      for await (const { event, data, id } of readStream(this.#url(), signal, this.#options.token)) {
        if (event === 'goodbye') throw new NetworkError(data);
        const at = parseCursor(id);
        if (!at || event === 'connected') continue;
        if (at.epoch !== this.#position.epoch || at.seq >= upTo) break;
        this.#listenTo(event);
        if (at.seq === this.#position.seq + 1 || event === 'gap') {
          this.#deliver({ name: event, data: JSON.parse(data), cursor: id }, at);
        }
      }
    } catch {
      if (this.#abort.signal.aborted) return;
      // Cut off in the middle: everything after the hole is asked for once more.
      this.#waiting = null;
      this.#failures += 1;
      this.#dropSource();
      this.#tryLater();
      return;
    } finally {
      abort.abort();
    }
    if (this.#abort.signal.aborted) return;
    // The server was asked and does not have it either: that is a gap, and is said.
    this.#announceMissing(upTo - 1, 'unread');
    const waiting = this.#waiting ?? [];
    this.#waiting = null;
    for (const event of waiting) this.#take(event);
  }

  #announceMissing(to, reason, snapshot) {
    const { seq, epoch } = this.#position ?? { seq: to, epoch: '' };
    if (to <= seq) return;
    const at = { seq: to, epoch };
    this.#deliver({ name: 'gap', data: { from: seq + 1, to, reason, ...(snapshot && { snapshot }) }, cursor: `${to}-${epoch}` }, at);
  }

  /** A terminal event came. After a retry an old one lies in the middle of the log, so the snapshot decides. */
  async #settle() {
    try {
      const job = await this.#snapshot();
      if (isTerminal(job.status) && !this.#isBehind(job)) this.#finish({ state: 'ended', job });
    } catch {
      // Asked again when the stream ends.
    }
  }

  async #snapshot() {
    const job = await getJob(this.#jobId, { base: this.#options.base, token: this.#options.token, signal: this.#abort.signal });
    this.#options.onSnapshot?.(job);
    return job;
  }

  #isBehind(job) {
    const head = parseCursor(job.cursor);
    return Boolean(head) && (head.epoch !== this.#position?.epoch || head.seq > this.#position.seq);
  }

  /** @param {EventSource} source */
  #onError(source) {
    this.#failures += 1;
    if (this.#atEnd) {
      // The planned end, which #settle is about to confirm; if it cannot, ask again rather than reconnect for ever.
      this.#dropSource();
      this.#tryLater({ quiet: true });
      return;
    }
    // A goodbye announced this cut: it is news only if the next connection fails too.
    const planned = this.#goodbye && this.#failures === 1;
    if (source.readyState !== EventSource.CLOSED && this.#failures < TAKE_OVER_AFTER) {
      if (!planned) this.#sayOffline();
      return;
    }
    this.#dropSource();
    this.#tryLater();
  }

  #sayOffline(retryAt) {
    this.#since ||= Date.now();
    this.#say({ state: 'offline', since: this.#since, retryAt, reason: this.#goodbye?.reason });
  }

  #tryLater({ atLeastMs = 0, quiet = false } = {}) {
    const exponential = this.#options.retryMs * 2 ** Math.min(this.#failures - 1, 10);
    const delay = Math.max(Math.min(exponential, MAX_BACKOFF_MS) * (0.5 + Math.random()), atLeastMs);
    if (!quiet) this.#sayOffline(Date.now() + delay);
    this.#retry = setTimeout(() => this.#probe(), delay);
  }

  /** Asks for the snapshot; the answer tells whether to stream, to poll, to wait, or to give up. */
  async #probe() {
    this.#retry = undefined;
    let job;
    try {
      job = await this.#snapshot();
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (!error.passing) return this.#finish({ state: 'refused', error });
      this.#failures += 1;
      return this.#tryLater({ atLeastMs: (error.retryAfter ?? 0) * 1_000 });
    }
    if (isTerminal(job.status) && !this.#isBehind(job)) return this.#finish({ state: 'ended', job });
    if (this.#failures < POLL_AFTER || this.#failures % STREAM_EVERY === 0) return this.#open();
    if (isTerminal(job.status) && this.#failures > 3 * STREAM_EVERY) {
      // It ended, and its stream cannot be had: say what stays unread instead of trying for ever.
      this.#announceMissing(parseCursor(job.cursor)?.seq ?? 0, 'unread', job);
      return this.#finish({ state: 'ended', job });
    }
    this.#failures += 1;
    this.#since = 0;
    this.#say({ state: 'polling', job });
    this.#retry = setTimeout(() => this.#probe(), this.#options.pollMs);
    return undefined;
  }

  /**
   * `EventSource` hides heartbeats, so silence proves nothing by itself. The snapshot does: if the log's head stays
   * ahead of what has arrived, the stream is stuck in a proxy or on a dead connection.
   */
  #expectTraffic(ms = this.#options.silenceMs, suspect = undefined) {
    clearTimeout(this.#silence);
    const source = this.#source;
    this.#silence = setTimeout(async () => {
      try {
        const job = await this.#snapshot();
        if (source !== this.#source) return;
        const stuck = suspect !== undefined && suspect === (this.cursor ?? '');
        if (source.readyState === EventSource.OPEN && !this.#isBehind(job)) {
          this.#failures = 0;
          return this.#expectTraffic();
        }
        if (!stuck) return this.#expectTraffic(this.#options.silenceMs / 10, this.cursor ?? '');
      } catch (error) {
        if (source !== this.#source || this.#abort.signal.aborted) return;
        if (!error.passing) return this.#finish({ state: 'refused', error });
      }
      this.#failures += SILENCE_WEIGHT;
      this.#dropSource();
      return this.#tryLater();
    }, ms);
  }
}
