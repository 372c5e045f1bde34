//! The Rust worker library.
