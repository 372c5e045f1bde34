/**
 * Workers and callers for Tidegate. What everything means is in the README; units: times are `Date`, durations
 * milliseconds, sizes bytes of UTF-8.
 */

/** Certificates for `https://` addresses, in PEM; without them the system's authorities are trusted. */
export interface Tls {
  ca?: Buffer | string;
  cert?: Buffer | string;
  key?: Buffer | string;
}

// --- Workers.

export type WorkerStatus =
  /** No engine has welcomed the worker, or the connection broke; jobs keep running. */
  | "connecting"
  | "connected"
  /** The worker shuts down, or its engine drains: no new jobs. */
  | "draining"
  | "stopped";

/** Where a worker logs. `console` will do. */
export interface Logger {
  debug(line: string): void;
  info(line: string): void;
  warn(line: string): void;
  error(line: string): void;
}

/**
 * A bearer token or API key, or a function that gives the one that is good now: it is asked at every call and every connect.
 * `TIDEGATE_TOKEN` by default.
 */
export type Token = string | (() => string);

export interface WorkerOptions {
  /** For people and the engine's logs; need not be unique. The host's name by default. */
  name?: string;
  /** How many jobs run at once, 1 to 10,000; 4 by default. */
  capacity?: number;
  /** How long running jobs may go on after a shutdown began, in ms; 5,000 by default. */
  grace?: number;
  /** Whether progress that has not left may be replaced by newer progress; true by default. */
  coalesce?: boolean;
  token?: Token;
  tls?: Tls;
  /** Lines on standard error by default. */
  logger?: Logger;
  onStatus?: (status: WorkerStatus) => void;
}

/** What callers are told about a kind. All three together: at most 16 KiB. */
export interface KindOffer {
  /** What it does, in one sentence. */
  description?: string;
  /** A JSON Schema of the input. It informs callers; the handler must check its input itself. */
  inputSchema?: object;
  example?: unknown;
}

/** Runs one job. What it returns (or resolves to) is the job's result, a JSON value; `undefined` counts as null. */
export type Handler<Input = any> = (ctx: JobContext, input: Input) => unknown;

export class Worker {
  /**
   * @param addresses one engine or several, such as `http://127.0.0.1:50051`; several may also stand in one text, between
   *   commas. A random one is dialled first, then the next.
   * @throws {TypeError | RangeError} for a description that makes no worker
   */
  constructor(addresses: string | string[], options?: WorkerOptions);
  readonly status: WorkerStatus;
  /** Offers a kind: `[a-z][a-z0-9._-]{0,63}`. */
  kind<Input = any>(kind: string, offer: KindOffer, handler: Handler<Input>): this;
  kind<Input = any>(kind: string, handler: Handler<Input>): this;
  /**
   * Works until {@link Worker.stop}, or (unless `signals` is false) SIGTERM or SIGINT, and until the jobs at hand are
   * finished or given back. An engine that cannot be reached is tried again for ever.
   */
  run(options?: { signals?: boolean }): Promise<void>;
  /** Lets running jobs finish within the grace time, tells the rest to stop, gives back what is left. */
  stop(): Promise<void>;
}

/** How far the work is; every field may be left out. */
export interface Progress {
  /** 0 to 100; values beyond are clamped. */
  percent?: number;
  /** How much is done, counted in `unit`. A `bigint` beyond 2^53. */
  done?: number | bigint;
  total?: number | bigint;
  /** Such as `bytes` or `rows`. */
  unit?: string;
  /** The current step, from 1, of `steps`. */
  step?: number;
  steps?: number;
  stepName?: string;
  /** Units per second. */
  rate?: number;
  /** The estimated time to the end, in ms. */
  eta?: number;
  /** In words for a person; cut at 1 KiB. */
  message?: string;
}

export type LogLevel = "debug" | "info" | "warn" | "error";

/** A running job. */
export interface JobContext<Input = any> {
  readonly jobId: string;
  readonly kind: string;
  /** From 1. */
  readonly attempt: number;
  /** The fencing token of this attempt's lease. */
  readonly leaseToken: string;
  readonly tenant: string;
  /** The subject that submitted the job. */
  readonly owner: string;
  /** The instant for which a schedule submitted the job; null if somebody did. */
  readonly scheduledFor: Date | null;
  readonly input: Input;
  /** The input as it was submitted; numbers beyond 2^53 are exact here alone. */
  readonly inputJson: string;
  /** The last stored checkpoint, of this attempt's start; null on a fresh start. */
  readonly resume: Readonly<{ name: string; data: Buffer }> | null;
  /** Aborted when the job has to stop; its reason is `Cancelled`, `ShuttingDown` or `LeaseLost`. */
  readonly signal: AbortSignal;

  /**
   * Reports progress. What has not left yet is replaced (see `coalesce`).
   * Resolves when there is room for more; a handler that reports in a loop awaits it. Rejects with `Cancelled` or `LeaseLost`.
   * @throws {TypeError} at once, for a field that there is not, or of the wrong type
   */
  progress(progress: Progress): Promise<void>;
  /**
   * Says one line; longer ones than 16 KiB are cut. Also after a cancellation.
   * Resolves when there is room for more. Who does not await it and says more than 2 MiB, or 512 lines, ahead of the engine
   * loses lines; how many is then said in their place. Rejects with `LeaseLost`.
   */
  log(text: string, options?: { level?: LogLevel; source?: string }): Promise<void>;
  /**
   * Saves a point from which the job can resume; resolves when it is stored. At most 64 KiB unless the engine says otherwise.
   * Rejects with `ReportRejected`, `Cancelled` or `LeaseLost`; then it was not stored, or nobody knows.
   */
  checkpoint(name: string, data: Uint8Array | string): Promise<void>;
  /**
   * Publishes something of the job's own (a chart, a table) under a name `[a-z][a-z0-9._-]{0,63}` that is not Tidegate's own;
   * resolves when it is stored. At most 64 KiB of JSON unless the engine says otherwise. Rejects as `checkpoint` does.
   */
  custom(name: string, value: unknown): Promise<void>;
  /** Resolves when everything said so far is stored. */
  flush(): Promise<void>;
}

/** Thrown by a handler: the job failed, or this attempt if `retryable` (false by default) and attempts are left. */
export class JobFailed extends Error {
  /** @param code a short stable word for programs, such as `not_found` */
  constructor(code: string, message: string, options?: { retryable?: boolean; cause?: unknown });
  readonly code: string;
  readonly retryable: boolean;
}

/** Thrown by a handler: the job goes back unfinished, and another worker goes on. Counts as no failure. */
export class JobReleased extends Error {}

/** Why a job has to stop. */
export class Stop extends Error {}

/** Somebody called the job off. Whatever the handler does now, the job ends as cancelled, at the latest at the deadline. */
export class Cancelled extends Stop {
  constructor(by: string, reason: string, deadline: Date);
  /** Empty while the engine has not said yet. */
  by: string;
  reason: string;
  readonly deadline: Date;
}

/** The worker shuts down: the handler may still save a checkpoint; then the job goes to another worker. */
export class ShuttingDown extends Stop {
  constructor(deadline: Date);
  readonly deadline: Date;
}

/** The job belongs to another worker, or has ended: nothing that this one says is stored any more. */
export class LeaseLost extends Stop {
  constructor(reason: string);
  readonly reason: string;
}

/** A report broke a rule, such as a limit on its size. Nothing was stored; the job may go on. */
export class ReportRejected extends Error {}

// --- Callers.

export interface ClientOptions {
  /** On whose behalf, where the engine tells callers apart. */
  caller?: { tenant?: string; subject?: string };
  /** How long a call may take with all its tries, in ms; 10,000 by default. Watches last as long as their jobs. */
  timeout?: number;
  token?: Token;
  tls?: Tls;
}

/** What a submitter may ask for: the fields of `JobOptions` in the contract. Durations in ms, times as `Date`. */
export interface JobOptions {
  delay?: number;
  /** How many attempts may end in a retryable failure; 1 by default. */
  maxAttempts?: number;
  backoff?: number;
  maxBackoff?: number;
  maxStalls?: number;
  retention?: number;
  /** Orders an owner's own jobs of a kind, the higher first: -100 to 100, 0 by default. */
  priority?: number;
  /** Ends an attempt that takes longer. */
  timeout?: number;
  /** Ends an attempt that reports nothing for this long. */
  progressDeadline?: number;
  /** At most `limit` jobs with this key run at once in the tenant. */
  concurrency?: { key: string; limit: number };
  /** One unfinished job with this key in the tenant; a second submission yields the first job. */
  uniqueKey?: string;
  /** Excludes `delay`. */
  runAt?: Date;
  /** Whatever the contract has beyond; a name that it has not is refused with a `TypeError`. */
  [option: string]: unknown;
}

export interface SubmitOptions {
  options?: JobOptions;
  /** At most 128 printable ASCII characters. The same key with the same request yields the same job for 24 h. */
  idempotencyKey?: string;
}

export type JobState = "SCHEDULED" | "QUEUED" | "PROCESSING" | "COMPLETED" | "FAILED" | "CANCELLED";

export interface Job {
  jobId: string;
  kind: string;
  tenant: string;
  owner: string;
  state: JobState;
  attempt: number;
  input: unknown;
  options: JobOptions;
  createdAt: Date;
  updatedAt: Date;
  startedAt?: Date;
  finishedAt?: Date;
  /** When the next attempt may begin, while SCHEDULED. */
  runAt?: Date;
  progress?: Progress;
  checkpoint?: { name: string; size: number };
  cancelRequested?: { by: string; reason: string; deadline?: Date };
  /** When COMPLETED. */
  result?: unknown;
  /** When FAILED. */
  failed?: { code: string; message: string; retryable: boolean };
  /** When CANCELLED. */
  cancelled?: { by: string; reason: string };
  lastSeq: number;
  firstSeq: number;
  epoch: string;
}

export interface ListOptions {
  /** 1 to 200; 50 by default. */
  pageSize?: number;
  pageToken?: string;
  states?: JobState[];
  kind?: string;
}

export interface WatchOptions {
  /** Go on behind this event: the `cursor` of one seen before. */
  cursor?: string;
  /** Begin no further back than so many events. */
  tail?: number;
  /** Ends the watch, not the job. */
  signal?: AbortSignal;
}

interface EventBase {
  /** The position behind this event: what to resume from. */
  cursor: string;
  /** 1, 2, 3 … with no hole. */
  seq: number;
  time: Date;
  attempt: number;
}

export type JobEvent =
  | (EventBase & { type: "state"; state: JobState; reason: string; runAt?: Date; cancelRequested?: { by: string; reason: string; deadline?: Date } })
  | (EventBase & { type: "progress"; progress: Progress })
  | (EventBase & { type: "log"; level: LogLevel; text: string; source: string })
  | (EventBase & { type: "checkpoint"; name: string; size: number })
  | (EventBase & { type: "custom"; name: string; value: unknown })
  | (EventBase & { type: "complete"; result: unknown })
  | (EventBase & { type: "failed"; code: string; message: string; retryable: boolean })
  | (EventBase & { type: "cancelled"; by: string; reason: string })
  /** An event of a kind that only a newer engine knows. */
  | (EventBase & { type: "unknown" })
  /** The events `from` to `to` cannot be had any more; `snapshot` stands in for them. */
  | { type: "gap"; cursor: string; from: number; to: number; reason: "trimmed" | "reset"; snapshot: Job };

export interface OfferedKind {
  kind: string;
  description: string;
  inputSchema?: unknown;
  example?: unknown;
  /** Whether a worker offered it within the last minute. */
  live: boolean;
}

/** Every method rejects with a {@link TidegateError}, or a `TypeError` for an argument that the contract does not have. */
export class Client {
  /** @param addresses as for {@link Worker} */
  constructor(addresses: string | string[], options?: ClientOptions);
  /** Resolves when the job is stored. `created` is false when the idempotency key had already produced it. */
  submit(kind: string, input?: unknown, options?: SubmitOptions): Promise<Job & { created: boolean }>;
  get(jobId: string): Promise<Job>;
  /** Newest first. With filters a page may be short although more follow: go on until `nextPageToken` is empty. */
  list(options?: ListOptions): Promise<{ jobs: Job[]; nextPageToken: string }>;
  /** The job as it is once the request is stored: a waiting one is cancelled at once, a running one within its deadline. */
  cancel(jobId: string, options?: { reason?: string }): Promise<Job>;
  /** Queues a failed or cancelled job again; its log goes on. */
  retry(jobId: string): Promise<Job>;
  /** Removes a finished job with its log. */
  delete(jobId: string): Promise<void>;
  kinds(): Promise<OfferedKind[]>;
  /**
   * The job's events from the cursor on, then live, up to and including the one that ends it. A connection that breaks is
   * resumed unseen, each event comes once, and what cannot be had any more is told by a `gap`. Leaving the loop ends the
   * watch and never the job.
   */
  watch(jobId: string, options?: WatchOptions): AsyncGenerator<JobEvent, void, void>;
  close(): void;
}

/** A call failed. `code` is the gRPC status's name, `reason` the engine's own stable word, such as `JOB_NOT_FOUND`. */
export class TidegateError extends Error {
  constructor(message: string, details: {
    code: string; reason?: string; metadata?: Record<string, string>; fields?: { field: string; description: string }[];
    retryAfter?: number; cause?: unknown;
  });
  readonly code: string;
  readonly reason: string;
  readonly metadata: Record<string, string>;
  /** What was wrong with which field, for INVALID_ARGUMENT. */
  readonly fields: { field: string; description: string }[];
  /** When to try again, in ms, if the engine said. */
  readonly retryAfter: number | undefined;
}

export class InvalidArgument extends TidegateError {}
/** The job does not exist, or belongs to somebody else. */
export class NotFound extends TidegateError {}
/** The idempotency key was used with another request. */
export class Conflict extends TidegateError {}
/** The job's state does not allow it. */
export class WrongState extends TidegateError {}
/** A limit is reached. */
export class Exhausted extends TidegateError {}
/** No engine answered, or none in time. */
export class Unavailable extends TidegateError {}
/** The caller is not known, or may not. */
export class Denied extends TidegateError {}
