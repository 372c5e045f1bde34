//! Credentials as attackers and accidents make them, against a file that is changed while it is in force.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::needless_pass_by_value, reason = "json!() where it is used reads best")]

mod file;
mod fixture;
mod tokens;
