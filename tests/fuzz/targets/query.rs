//! Where a stream begins, by its query and its `Last-Event-ID`: refused, or a position, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Option<&[u8]>)| {
    let (query, header) = input;
    edge_gateway::fuzzing::position(query, header);
});
