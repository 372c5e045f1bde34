//! An incremental parser of `text/event-stream`, by the rules of WHATWG HTML section 9.2.6.
//!
//! Feed it chunks cut anywhere, inside a character or between CR and LF: the events that come out are the same.
//! An event is handed over when its blank line is complete; what a cut connection leaves behind is dropped, and
//! its `id` with it. Memory is bounded by the limit given to [`Parser::with_limit`]. It does no I/O, knows no
//! job and keeps no clock: reconnecting is the caller's business ([`crate::follow`]).

use std::time::Duration;

/// One dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's name; `message` when the server named none.
    pub name: String,
    /// The payload, its lines joined by LF.
    pub data: String,
    /// The last event id in force at this event; empty when the server never sent one.
    pub id: String,
}

/// A line or an event was larger than the limit; the stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {0} bytes")]
pub struct TooLarge(pub usize);

/// The parser's state between two chunks.
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// The bytes of a line that is not complete yet.
    line: Vec<u8>,
    /// The previous byte was a CR: an LF that follows belongs to the same line end.
    after_cr: bool,
    /// No line has been seen yet, so a byte order mark may still come.
    at_start: bool,
    name: String,
    data: String,
    has_data: bool,
    /// The id of the block that is being read; in force only from its blank line on.
    pending_id: String,
    last_id: String,
    retry: Option<Duration>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::with_limit(Self::DEFAULT_LIMIT)
    }
}

impl Parser {
    /// The limit unless another is given, in bytes: a gap's snapshot with the largest input and result fits.
    pub const DEFAULT_LIMIT: usize = 4 * 1024 * 1024;

    /// A parser at the beginning of a stream that refuses lines and events of more than `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_cr: false,
            at_start: true,
            name: String::new(),
            data: String::new(),
            has_data: false,
            pending_id: String::new(),
            last_id: String::new(),
            retry: None,
        }
    }

    /// The id to resume from: that of the last complete block, with or without data.
    pub fn last_event_id(&self) -> &str {
        &self.last_id
    }

    /// The last reconnection time that the server asked for.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Reads the next chunk and hands every event that it completes to `sink`.
    ///
    /// # Errors
    /// [`TooLarge`] when a line or an event exceeds the limit; the parser must not be fed further.
    pub fn feed(&mut self, mut chunk: &[u8], sink: &mut impl FnMut(Event)) -> Result<(), TooLarge> {
        while !chunk.is_empty() {
            if std::mem::take(&mut self.after_cr) && chunk[0] == b'\n' {
                chunk = &chunk[1..];
                continue;
            }
            let Some(end) = chunk.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.check(chunk.len())?;
                self.line.extend_from_slice(chunk);
                break;
            };
            self.check(end)?;
            self.after_cr = chunk[end] == b'\r';
            if self.line.is_empty() {
                self.line(&chunk[..end], sink);
            } else {
                self.line.extend_from_slice(&chunk[..end]);
                let line = std::mem::take(&mut self.line);
                self.line(&line, sink);
                self.line = line;
                self.line.clear();
            }
            chunk = &chunk[end + 1..];
        }
        Ok(())
    }

    fn check(&self, more: usize) -> Result<(), TooLarge> {
        if self.line.len() + self.data.len() + more > self.limit { Err(TooLarge(self.limit)) } else { Ok(()) }
    }

    fn line(&mut self, mut line: &[u8], sink: &mut impl FnMut(Event)) {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch(sink);
            return;
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            Some(0) => return,
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                // Line ends never occur inside a character, so decoding line by line equals decoding the stream.
                self.data.push_str(&String::from_utf8_lossy(value));
            }
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) => self.pending_id = String::from_utf8_lossy(value).into_owned(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let digits = std::str::from_utf8(value).ok();
                self.retry = digits.and_then(|d| d.parse().ok()).map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, sink: &mut impl FnMut(Event)) {
        self.last_id.clone_from(&self.pending_id);
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let name = if name.is_empty() { "message".to_owned() } else { name };
            sink(Event { name, data, id: self.last_id.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a whole stream yields when it arrives in the given pieces: events, last id, retry.
    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, String, Option<Duration>) {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, &mut |e| events.push(e)).unwrap();
        }
        (events, parser.last_event_id().to_owned(), parser.retry())
    }

    fn events(stream: &str) -> Vec<Event> {
        parse([stream.as_bytes()]).0
    }

    fn event(name: &str, data: &str, id: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: id.into() }
    }

    #[test]
    fn e1_lf_crlf_and_cr_all_end_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = ["event: log", "data: a", "data: b", "id: 1-q", "", "data: c", "", ""].join(end);
            assert_eq!(
                events(&stream),
                [event("log", "a\nb", "1-q"), event("message", "c", "1-q")],
                "{end:?}"
            );
        }
    }

    #[test]
    fn e3_exactly_one_space_is_stripped() {
        assert_eq!(
            events("data:a\n\ndata: a\n\ndata:  a\n\n").iter().map(|e| e.data.as_str()).collect::<Vec<_>>(),
            ["a", "a", " a"]
        );
    }

    #[test]
    fn e4_id_with_nul_is_ignored_and_empty_id_clears() {
        assert_eq!(parse([&b"id: 1-q\n\nid: 2\0-q\ndata: x\n\n"[..]]).0, [event("message", "x", "1-q")]);
        assert_eq!(parse([&b"id: 1-q\n\nid\ndata: x\n\n"[..]]).0, [event("message", "x", "")]);
    }

    #[test]
    fn e5_retry_takes_digits_only() {
        for (line, millis) in [
            ("retry: 1500", Some(1500)),
            ("retry:0", Some(0)),
            ("retry: 1.5", None),
            ("retry: -1", None),
            ("retry", None),
            ("retry:  7", None),
            ("retry: 99999999999999999999999", None),
        ] {
            let stream = format!("{line}\n\n");
            assert_eq!(parse([stream.as_bytes()]).2, millis.map(Duration::from_millis), "{line}");
        }
    }

    #[test]
    fn e6_block_without_data_moves_the_cursor_and_empty_data_dispatches() {
        assert_eq!(parse([&b"id: 9-q\n\n"[..]]), (vec![], "9-q".into(), None));
        assert_eq!(
            events("data\n\ndata:\n\ndata\ndata\n\n"),
            [event("message", "", ""), event("message", "", ""), event("message", "\n", "")]
        );
    }

    #[test]
    fn e7_truncated_event_is_dropped_and_its_id_not_committed() {
        assert_eq!(
            parse([&b"id: 1-q\ndata: a\n\nid: 2-q\ndata: b\n"[..]]),
            (vec![event("message", "a", "1-q")], "1-q".into(), None)
        );
    }

    #[test]
    fn e8_bom_is_dropped_once_and_bad_utf8_replaced() {
        assert_eq!(events("\u{feff}data: a\n\n"), [event("message", "a", "")]);
        assert_eq!(events("\u{feff}\u{feff}data: a\n\n"), []);
        assert_eq!(parse([&b"data: a\xFFb\n\n"[..]]).0, [event("message", "a\u{fffd}b", "")]);
    }

    #[test]
    fn e9_comments_unknown_fields_and_case_are_ignored() {
        assert_eq!(events(":\n: data: no\nDATA: no\nevent: x\nfoo: y\nda ta: no\n\n"), []);
        // The name of a block without data must not leak into the next one.
        assert_eq!(events("event: x\n\ndata: a\n\n"), [event("message", "a", "")]);
    }

    #[test]
    fn e11_size_is_bounded_for_lines_and_for_events() {
        let mut parser = Parser::with_limit(64);
        assert_eq!(parser.feed(&[b'x'; 65], &mut |_| {}), Err(TooLarge(64)));
        let mut parser = Parser::with_limit(64);
        let mut result = Ok(());
        for _ in 0..100 {
            result = result.and_then(|()| parser.feed(b"data: 12345678\n", &mut |_| {}));
        }
        assert_eq!(result, Err(TooLarge(64)));
    }

    proptest! {
        /// Lines are drawn from what matters to the grammar, so that rare joints are hit often.
        #[test]
        fn e60_chunk_boundaries_never_matter(
            lines in prop::collection::vec("(data|id|event|retry|x)?:? {0,2}[a0\u{fc}\u{1f980}:\u{feff}]{0,4}", 0..12),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\r\r"]), 12),
            bom in any::<bool>(),
            sizes in prop::collection::vec(1usize..5, 1..40),
        ) {
            let mut stream = if bom { "\u{feff}".to_owned() } else { String::new() };
            for (line, end) in lines.iter().zip(&ends) {
                stream += line;
                stream += end;
            }
            let whole = parse([stream.as_bytes()]);
            let mut rest = stream.as_bytes();
            let mut pieces = Vec::new();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, tail) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            prop_assert_eq!(&whole, &parse(pieces));
            prop_assert_eq!(&whole, &parse(stream.as_bytes().chunks(1)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(bytes.chunks(7));
        }
    }
}
