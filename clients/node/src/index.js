/** What the package offers; documented in `index.d.ts`. */

export { Client } from "./client.js";
export {
  Cancelled, Conflict, Denied, Exhausted, InvalidArgument, JobFailed, JobReleased, LeaseLost, NotFound, ReportRejected, ShuttingDown, Stop,
  TidegateError, Unavailable, WrongState,
} from "./errors.js";
export { Worker } from "./worker.js";
