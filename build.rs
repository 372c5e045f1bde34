//! Compiles `proto/` into Rust with protox, so that building Tidegate needs no `protoc`.
//!
//! The same descriptor set is written to `OUT_DIR` and served by gRPC reflection.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 4] = [
    "tidegate/v1/job.proto",
    "tidegate/v1/job_service.proto",
    "tidegate/v1/schedule_service.proto",
    "tidegate/v1/worker_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/tidegate");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("tidegate.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads share the buffer they arrived in instead of being copied out of it.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
