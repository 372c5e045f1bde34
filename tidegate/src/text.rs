//! Text from jobs and servers, made fit for a terminal.
//!
//! A log line is somebody else's bytes. Escape sequences in it could move the cursor, rewrite what stands above,
//! or set the clipboard; line ends could forge lines of our own. [`visible`] leaves ordinary text untouched and
//! spells everything else out.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    time::Duration,
};

/// `text` with every control character, line end and direction override written as an escape.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if is_hostile(c) && u32::from(c) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if is_hostile(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A JSON text, as it is written, with every hostile character that its strings may hold escaped: it means the same.
///
/// Those below U+0080 are escaped in JSON already, except DEL.
pub fn visible_json(text: impl fmt::Display) -> String {
    let text = text.to_string();
    if !text.contains(is_hostile) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            // Outside of strings: white space.
            '\n' | '\r' => out.push(c),
            // None of them needs a surrogate.
            c if is_hostile(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Control characters except the tab; line and paragraph separators; characters that reorder others.
fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A duration for people: `8s`, `2m 05s`, `3h 07m`.
pub fn duration(time: Duration) -> String {
    let s = time.as_secs_f64().round().min(1e9);
    // Between 0 and 1e9, so the cast is exact.
    #[allow(clippy::cast_possible_truncation)]
    let s = s as i64;
    match s {
        0..=59 => format!("{s}s"),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

/// A rate with its unit: `1.2 MB/s` for bytes, `830 rows/s` for anything else.
pub fn rate(per_second: f64, unit: &str) -> String {
    if unit == "bytes" {
        return format!("{}/s", bytes(per_second));
    }
    let digits = usize::from(per_second < 10.0);
    format!("{per_second:.digits$} {}/s", if unit.is_empty() { "units" } else { unit })
}

/// A number of bytes in decimal units: `42 B`, `1.2 MB`.
pub fn bytes(count: f64) -> String {
    let mut value = count.max(0.0);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rich in what must not pass; `any::<String>()` makes no control characters.
    const TEXT: &str = "[\\x00-\\u{ff}\\u{2000}-\\u{2070}\\u{1f980}]{0,40}";

    #[test]
    fn j40_escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(visible("plain ü 🦀\ttab"), "plain ü 🦀\ttab");
        assert_eq!(visible("\x1b[2J\x1b]52;c;aGk=\x07"), "\\x1b[2J\\x1b]52;c;aGk=\\x07");
        assert_eq!(visible("a\r\n[100 %] COMPLETED"), "a\\r\\n[100 %] COMPLETED");
        assert_eq!(visible("\u{9b}31m \u{7f} \u{202e}fdp.exe"), "\\x9b31m \\x7f \\u{202e}fdp.exe");
    }

    proptest! {
        #[test]
        fn j40_nothing_hostile_is_left_in_any_text(text in TEXT) {
            prop_assert!(!visible(&text).contains(is_hostile));
        }
    }

    #[test]
    fn j40_json_is_escaped_and_means_the_same() {
        let value = serde_json::json!({ "\u{9b}2J": ["\u{7f}", "\u{85}\n", "\u{202e}", "ü 🦀\t"] });
        assert_eq!(visible_json(&value), r#"{"\u009b2J":["\u007f","\u0085\n","\u202e","ü 🦀\t"]}"#);
        let pretty = visible_json(format_args!("{value:#}"));
        assert_eq!(pretty.lines().count(), 8, "{pretty}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pretty).unwrap(), value);
    }

    proptest! {
        #[test]
        fn j40_nothing_hostile_is_left_in_any_json(text in TEXT) {
            let escaped = visible_json(serde_json::Value::from(&*text));
            prop_assert!(!escaped.contains(is_hostile));
            prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }

    #[test]
    fn quantities_read_well() {
        assert_eq!(duration(Duration::from_millis(7600)), "8s");
        assert_eq!(duration(Duration::from_secs(125)), "2m 05s");
        assert_eq!(duration(Duration::from_secs(11_220)), "3h 07m");
        assert_eq!(rate(1_234_567.0, "bytes"), "1.2 MB/s");
        assert_eq!(rate(830.4, "rows"), "830 rows/s");
        assert_eq!(rate(1.5, "steps"), "1.5 steps/s");
    }
}
