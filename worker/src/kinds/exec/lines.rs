//! What a command prints, as lines that are fit for a log, and as directives. Pure, and bounded in every direction.
//!
//! | line on standard output | what it becomes |
//! | --- | --- |
//! | `::progress 40 compiling` | progress 40 %, with a message |
//! | `::progress 3/10 linking` | progress 3 of 10 |
//! | `::checkpoint NAME [data]` | a checkpoint; the next attempt finds the data in `TIDEGATE_CHECKPOINT` |
//! | `::custom NAME JSON` | a custom event |
//! | `::result JSON` | the job's result |
//! | `::mask SECRET` | nothing; the secret is shown as `***` from here on |
//!
//! Anything else, malformed directives too, is an ordinary line.

use std::time::{Duration, Instant};

use tidegate_proto::limits;

/// How many secrets may be masked.
const MAX_MASKS: usize = 100;

/// Cuts a stream of bytes into lines of at most [`MAX_LINE`] bytes; what exceeds that is dropped.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// Whether something of `line` was dropped.
    overflow: bool,
}

/// The longest line that is kept for parsing: the largest result must fit. A log line is cut again when it is sent.
const MAX_LINE: usize = limits::MAX_RESULT_BYTES + 256;

impl Lines {
    /// Takes more bytes; `each` gets every line that they complete, without its end.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            each(self.take());
        }
        self.extend(bytes);
    }

    /// The last line, if it had no end.
    pub(super) fn finish(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.overflow |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(self.line.strip_suffix(b"\r").unwrap_or(&self.line)).into_owned();
        self.line.clear();
        // A line that was once huge does not keep its buffer.
        self.line.shrink_to(4096);
        let cut = std::mem::take(&mut self.overflow);
        if cut { line + limits::CUT_MARK } else { line }
    }
}

/// Text that can be shown anywhere: colour codes are dropped, other control characters made visible.
pub(super) fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                // Parameters and intermediates, then one final character.
                while chars.next_if(|c| (' '..='?').contains(c)).is_some() {}
                chars.next_if(|c| ('@'..='~').contains(c));
            }
            '\t' => text.push(c),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// A line that is more than text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Directive {
    Percent(f64, String),
    Count(u64, u64, String),
    Checkpoint(String, String),
    Custom(String, String),
    Result(serde_json::Value),
    Mask(String),
}

/// The directive that a line of standard output is, if it is one.
pub(super) fn directive(line: &str) -> Option<Directive> {
    let (word, rest) = split_word(line.strip_prefix("::")?);
    match word {
        "progress" => {
            let (amount, message) = split_word(rest);
            let message = printable(message);
            if let Some((done, total)) = amount.split_once('/') {
                let (done, total) = (done.parse().ok()?, total.parse().ok()?);
                return (done <= total && total > 0).then_some(Directive::Count(done, total, message));
            }
            let percent: f64 = amount.strip_suffix('%').unwrap_or(amount).parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Directive::Percent(percent, message))
        }
        "checkpoint" => {
            let (name, data) = split_word(rest);
            // It comes back through the environment, which knows no NUL.
            let fits = !name.is_empty() && data.len() <= limits::MAX_CHECKPOINT_BYTES && !data.contains('\0');
            fits.then(|| Directive::Checkpoint(printable(name), data.to_owned()))
        }
        "custom" => {
            let (name, json) = split_word(rest);
            let valid = limits::is_custom_event_name(name)
                && json.len() <= limits::MAX_CUSTOM_BYTES
                && serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok();
            valid.then(|| Directive::Custom(name.to_owned(), json.to_owned()))
        }
        "result" => serde_json::from_str(rest).ok().map(Directive::Result),
        "mask" => (!rest.trim().is_empty()).then(|| Directive::Mask(rest.trim().to_owned())),
        _ => None,
    }
}

fn split_word(text: &str) -> (&str, &str) {
    text.split_once(' ').map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

/// Secrets that are not to be shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Masks(Vec<String>);

impl Masks {
    /// Masks `secret` from here on; false when there are too many already.
    pub(super) fn add(&mut self, secret: String) -> bool {
        if self.0.contains(&secret) {
            return true;
        }
        let room = self.0.len() < MAX_MASKS;
        if room {
            self.0.push(secret);
            // The longest first: a secret that is part of another must not leave the rest of it standing.
            self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
        room
    }

    pub(super) fn apply(&self, mut text: String) -> String {
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), "***");
            }
        }
        text
    }
}

/// Lets so many lines a second pass, ten times as many at once, and counts the others.
#[derive(Debug)]
pub(super) struct Flood {
    per_second: f64,
    tokens: f64,
    last: Instant,
    dropped: u64,
}

/// How often dropped lines are summed up, at most.
const SUMMARY_EVERY: Duration = Duration::from_secs(1);

impl Flood {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, tokens: per_second * 10.0, last: now, dropped: 0 }
    }

    /// Whether a line may pass. The number is that of the lines dropped before it, to be told first.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.last);
        // After a flood the lines go on once a second's worth may pass: otherwise every other line were a summary.
        if self.dropped > 0 && elapsed < SUMMARY_EVERY {
            self.dropped += 1;
            return None;
        }
        self.last = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.per_second * 10.0);
        if self.tokens < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(self.finish())
    }

    /// How many lines were dropped since that was last told.
    pub(super) fn finish(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |line| out.push(line));
        }
        out.extend(lines.finish());
        out
    }

    #[test]
    fn j40_lines_are_cut_and_made_printable() {
        assert_eq!(lines(&[b"a\r\nb", b"c\n", b"\xffd"]), ["a", "bc", "\u{fffd}d"]);
        let huge = lines(&[&vec![b'x'; 10 * MAX_LINE], b"\nnext\n"]);
        assert_eq!(huge.len(), 2);
        assert!(huge[0].len() < MAX_LINE + 100 && huge[0].ends_with(limits::CUT_MARK));
        assert_eq!(huge[1], "next");
        assert_eq!(printable("\u{1b}[31;1mred\u{1b}[0m\ta\u{7}b\0"), "red\ta\\u{7}b\\u{0}");
        assert_eq!(printable("10%\r20%"), "10%\\r20%");
    }

    #[test]
    fn j40_directives_are_parsed_and_malformed_ones_are_lines() {
        use Directive::*;
        for (line, expected) in [
            ("::progress 40 compiling it", Some(Percent(40.0, "compiling it".into()))),
            ("::progress 99.5%", Some(Percent(99.5, String::new()))),
            ("::progress 3/10 msg", Some(Count(3, 10, "msg".into()))),
            ("::checkpoint half", Some(Checkpoint("half".into(), String::new()))),
            ("::checkpoint half a b", Some(Checkpoint("half".into(), "a b".into()))),
            ("::custom chart {\"a\":1}", Some(Custom("chart".into(), "{\"a\":1}".into()))),
            ("::result [1, 2]", Some(Result(serde_json::json!([1, 2])))),
            ("::mask s3cret", Some(Mask("s3cret".into()))),
            ("::progress", None),
            ("::progress NaN", None),
            ("::progress 101", None),
            ("::progress -1", None),
            ("::progress 4/3", None),
            ("::progress 0/0", None),
            ("::checkpoint", None),
            ("::custom error {}", None),
            ("::custom chart {", None),
            ("::custom chart", None),
            ("::result", None),
            ("::result {} x", None),
            ("::mask ", None),
            ("::unknown x", None),
            (" ::progress 4", None),
            (":progress 4", None),
        ] {
            assert_eq!(directive(line), expected, "{line}");
        }
    }

    #[test]
    fn j40_masks_hide_overlapping_secrets() {
        let mut masks = Masks::default();
        assert!(masks.add("abc".into()) && masks.add("abcdef".into()) && masks.add("abc".into()));
        assert_eq!(masks.apply("x abcdef abc ab".into()), "x *** *** ab");
        for i in 0..200 {
            masks.add(format!("secret {i}"));
        }
        assert_eq!(masks.0.len(), MAX_MASKS);
    }

    #[test]
    fn j40_a_flood_is_limited_and_counted() {
        let start = Instant::now();
        let mut flood = Flood::new(10, start);
        let (mut passed, mut told) = (0, 0);
        for i in 0..10_000 {
            if let Some(dropped) = flood.admit(start + Duration::from_millis(i)) {
                passed += 1;
                told += dropped;
            }
        }
        told += flood.finish();
        assert_eq!(passed + told, 10_000);
        assert!((100..=200).contains(&passed), "{passed}");
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(lines(&[head, tail]), lines(&[&bytes[..]]));
        }

        #[test]
        fn printable_text_has_no_control_characters(line in "\\PC*|[\\x00-\\x1f\\[m0-9;]{0,20}") {
            prop_assert!(printable(&line).chars().all(|c| c == '\t' || !c.is_control()));
        }
    }
}
