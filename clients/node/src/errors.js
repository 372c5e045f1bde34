/**
 * Every error that this library throws on purpose, and the one place where a gRPC status becomes one of them.
 *
 * Two families: what a job's handler meets (`Stop` and its kinds, `ReportRejected`, and what it throws itself:
 * `JobFailed`, `JobReleased`), and what a caller meets (`TidegateError` and its kinds).
 */

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

/** Thrown by a handler: the job, or this attempt at it, failed. */
export class JobFailed extends Error {
  name = "JobFailed";

  /**
   * @param {string} code a short stable word for programs, such as `not_found`
   * @param {string} message what went wrong, in words for a person
   * @param {{ retryable?: boolean, cause?: unknown }} [options]
   */
  constructor(code, message, { retryable = false, cause } = {}) {
    super(message, { cause });
    this.code = code;
    this.retryable = retryable;
  }
}

/** Thrown by a handler: the job goes back unfinished, and another worker goes on. Counts as no failure. */
export class JobReleased extends Error {
  name = "JobReleased";
}

/** Why a job has to stop: the reason of its `signal`. */
export class Stop extends Error {
  name = "Stop";
}

/** Somebody called the job off. */
export class Cancelled extends Stop {
  name = "Cancelled";

  /**
   * @param {string} by
   * @param {string} reason
   * @param {Date} deadline
   */
  constructor(by, reason, deadline) {
    super(`cancelled by ${by || "somebody"}${reason ? `: ${reason}` : ""}`);
    this.by = by;
    this.reason = reason;
    this.deadline = deadline;
  }
}

/** The worker shuts down. */
export class ShuttingDown extends Stop {
  name = "ShuttingDown";

  /** @param {Date} deadline */
  constructor(deadline) {
    super("the worker shuts down");
    this.deadline = deadline;
  }
}

/** The job belongs to another worker, or to nobody. */
export class LeaseLost extends Stop {
  name = "LeaseLost";

  /** @param {string} reason */
  constructor(reason) {
    super(`the lease is lost: ${reason}`);
    this.reason = reason;
  }
}

/** A report broke a rule, such as a limit on its size; nothing was stored, the job may go on. */
export class ReportRejected extends Error {
  name = "ReportRejected";
}

/** A call failed. */
export class TidegateError extends Error {
  name = "TidegateError";

  /**
   * @param {string} message
   * @param {{ code: string, reason?: string, metadata?: Record<string, string>, fields?: { field: string, description: string }[],
   *   retryAfter?: number, cause?: unknown }} details
   */
  constructor(message, { code, reason = "", metadata = {}, fields = [], retryAfter, cause }) {
    super(message, { cause });
    this.code = code;
    this.reason = reason;
    this.metadata = metadata;
    this.fields = fields;
    this.retryAfter = retryAfter;
  }
}

export class InvalidArgument extends TidegateError { name = "InvalidArgument"; }
export class NotFound extends TidegateError { name = "NotFound"; }
export class Conflict extends TidegateError { name = "Conflict"; }
export class WrongState extends TidegateError { name = "WrongState"; }
export class Exhausted extends TidegateError { name = "Exhausted"; }
export class Unavailable extends TidegateError { name = "Unavailable"; }
export class Denied extends TidegateError { name = "Denied"; }

/** @type {Record<string, typeof TidegateError>} */
const CLASSES = {
  INVALID_ARGUMENT: InvalidArgument,
  NOT_FOUND: NotFound,
  ALREADY_EXISTS: Conflict,
  FAILED_PRECONDITION: WrongState,
  RESOURCE_EXHAUSTED: Exhausted,
  UNAVAILABLE: Unavailable,
  DEADLINE_EXCEEDED: Unavailable,
  UNAUTHENTICATED: Denied,
  PERMISSION_DENIED: Denied,
};

/** google.rpc, as far as Tidegate's errors use it (AIP-193); small enough to need no files. */
const rpc = loader.fromJSON(/** @type {any} */ ({
  nested: { google: { nested: { rpc: { nested: {
    Any: { fields: { typeUrl: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
    Status: { fields: { code: { type: "int32", id: 1 }, message: { type: "string", id: 2 }, details: { rule: "repeated", type: "Any", id: 3 } } },
    ErrorInfo: { fields: { reason: { type: "string", id: 1 }, domain: { type: "string", id: 2 }, metadata: { keyType: "string", type: "string", id: 3 } } },
    Violation: { fields: { field: { type: "string", id: 1 }, description: { type: "string", id: 2 } } },
    BadRequest: { fields: { fieldViolations: { rule: "repeated", type: "Violation", id: 1 } } },
    Period: { fields: { seconds: { type: "int64", id: 1 }, nanos: { type: "int32", id: 2 } } },
    RetryInfo: { fields: { retryDelay: { type: "Period", id: 1 } } },
    Decoder: { methods: {
      status: { requestType: "Status", responseType: "Status" }, errorInfo: { requestType: "ErrorInfo", responseType: "ErrorInfo" },
      badRequest: { requestType: "BadRequest", responseType: "BadRequest" }, retryInfo: { requestType: "RetryInfo", responseType: "RetryInfo" },
    } },
  } } } } },
}), { longs: Number, defaults: true });
const decoders = /** @type {Record<string, import("@grpc/grpc-js").MethodDefinition<any, any>>} */ (rpc["google.rpc.Decoder"]);

/**
 * What a failed call means to the caller.
 * @param {any} error an error of grpc-js
 * @returns {TidegateError}
 */
export function fromStatus(error) {
  if (error instanceof TidegateError) return error;
  const code = grpc.status[error?.code] ?? "UNKNOWN";
  const Kind = CLASSES[code] ?? TidegateError;
  return new Kind(error?.details || error?.message || String(error), { code, ...richDetails(error?.metadata), cause: error });
}

/** @param {import("@grpc/grpc-js").Metadata | undefined} metadata */
function richDetails(metadata) {
  /** @type {{ reason?: string, metadata?: Record<string, string>, fields?: { field: string, description: string }[], retryAfter?: number }} */
  const found = {};
  const [bytes] = metadata?.get("grpc-status-details-bin") ?? [];
  if (!Buffer.isBuffer(bytes)) return found;
  try {
    for (const { typeUrl, value } of decoders.status.responseDeserialize(bytes).details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) ({ reason: found.reason, metadata: found.metadata } = decoders.errorInfo.responseDeserialize(value));
      if (typeUrl.endsWith("/google.rpc.BadRequest")) found.fields = decoders.badRequest.responseDeserialize(value).fieldViolations;
      if (typeUrl.endsWith("/google.rpc.RetryInfo")) {
        const { seconds, nanos } = decoders.retryInfo.responseDeserialize(value).retryDelay ?? { seconds: 0, nanos: 0 };
        found.retryAfter = seconds * 1000 + nanos / 1e6;
      }
    }
  } catch {
    // Details that cannot be read take nothing away from the status itself.
  }
  return found;
}
