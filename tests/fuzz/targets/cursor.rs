//! E23: a text is refused, or it is a cursor that prints back byte for byte and needs no escaping anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_proto::cursor::Cursor;

fuzz_target!(|text: &str| {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text);
        assert!(text.len() <= Cursor::MAX_LEN);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')));
    }
});
