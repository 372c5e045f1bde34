//! The state of jobs, the event log, and dispatch.
