//! The HTTP and SSE edge.
