//! Limits and names that both ends of a connection check, so that a refusal comes before a send.

/// The largest job input, in bytes of JSON.
pub const MAX_INPUT_BYTES: usize = 256 * 1024;
/// The largest input of a schedule's jobs, in bytes of JSON: it is written with every firing.
pub const MAX_SCHEDULE_INPUT_BYTES: usize = 64 * 1024;
/// The longest cron expression, in bytes of printable ASCII.
pub const MAX_CRON_BYTES: usize = 128;
/// How many schedules one owner may have.
pub const MAX_SCHEDULES: u64 = 1000;
/// The largest checkpoint unless configured, in bytes.
pub const MAX_CHECKPOINT_BYTES: usize = 64 * 1024;
/// The largest custom event, in bytes of JSON.
pub const MAX_CUSTOM_BYTES: usize = 64 * 1024;
/// The largest result, in bytes of JSON.
pub const MAX_RESULT_BYTES: usize = 256 * 1024;
/// The longest log line, in bytes; longer ones are cut and end in [`CUT_MARK`].
pub const MAX_LOG_BYTES: usize = 16 * 1024;
/// The longest message, reason, step name or source, in bytes; longer ones are cut and end in [`CUT_MARK`].
pub const MAX_TEXT_BYTES: usize = 1024;
/// The longest idempotency, concurrency or unique key, in bytes of printable ASCII.
pub const MAX_KEY_BYTES: usize = 128;
/// The priorities that a job may have.
pub const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;
/// How many jobs of one concurrency key may be allowed to run at once.
pub const MAX_CONCURRENCY: u32 = 1000;
/// The longest kind or event name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// The largest gRPC message, in bytes, in either direction.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// What stands at the end of a text that was cut.
pub const CUT_MARK: &str = " …[cut]";

/// Event names that a custom event may not take: Tidegate's own, and those that EventSource dispatches itself.
pub const RESERVED_EVENT_NAMES: [&str; 15] = [
    "state",
    "progress",
    "log",
    "checkpoint",
    "complete",
    "failed",
    "cancelled",
    "connected",
    "gap",
    "goodbye",
    "error",
    "open",
    "message",
    "retry",
    "close",
];

/// Whether `name` may name a kind of job: `[a-z][a-z0-9._-]{0,63}`.
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether `key` may be an idempotency, concurrency or unique key: 1 to 128 printable ASCII characters.
pub fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// Whether `name` may name a custom event.
pub fn is_custom_event_name(name: &str) -> bool {
    is_name(name) && !RESERVED_EVENT_NAMES.contains(&name)
}

/// The deepest nesting of a JSON text that is accepted; common parsers give up at 100 to 128.
pub const MAX_JSON_DEPTH: usize = 64;

/// How deeply arrays and objects are nested in `json`, which need not be valid. Takes linear time and no stack.
pub fn json_depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Shortens `text` to at most `max` bytes on a character boundary, marking the cut.
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let keep = max.saturating_sub(CUT_MARK.len());
        let end = (0..=keep).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push_str(CUT_MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e10_event_names_never_collide_with_eventsource() {
        for bad in ["error", "open", "message", "progress", "", "Chart", "a\nb", "1a", "gap"] {
            assert!(!is_custom_event_name(bad), "{bad:?} was accepted");
        }
        assert!(is_custom_event_name("chart.v2"));
    }

    #[test]
    fn depth_counts_brackets_outside_texts() {
        for (json, depth) in
            [("1", 0), ("{}", 1), (r#"[{"a":[1]}]"#, 3), (r#"["[[[", "\"[["]"#, 1), ("]]]", 0)]
        {
            assert_eq!(json_depth(json), depth, "{json}");
        }
        assert_eq!(json_depth(&"[".repeat(100_000)), 100_000);
    }

    #[test]
    fn cut_keeps_characters_whole() {
        assert_eq!(cut("kurz".into(), 16), "kurz");
        let text = cut("ä".repeat(100), 50);
        assert!(text.len() <= 50 && text.ends_with(CUT_MARK), "{text}");
    }
}
