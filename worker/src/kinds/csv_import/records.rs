//! Reads the records of a CSV file in bounded memory, each with its line and its place in the file.
//!
//! A record that is longer than [`MAX_RECORD`], or has more than [`MAX_FIELDS`] fields, is skipped to its end and
//! reported as too long; an unclosed quote makes such a record of the rest of the file. Blank lines are no records.
//! Quoting follows RFC 4180; LF, CRLF and CR end a record. A byte order mark at the start is dropped.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader};

/// The longest record, in bytes of its fields.
pub(super) const MAX_RECORD: usize = 1024 * 1024;
/// The most fields of a record; SQLite's limit on columns is 2,000.
pub(super) const MAX_FIELDS: usize = 2000;
/// How much is read at once.
const BLOCK: usize = 64 * 1024;

/// Where in the file a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes before it.
    pub(super) offset: u64,
    /// Its line, from 1.
    pub(super) line: u64,
}

impl Place {
    pub(super) const START: Self = Self { offset: 0, line: 1 };
}

/// A record, borrowed from the reader.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Fields(Fields<'a>),
    TooLong,
}

/// The fields of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Fields<'a> {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The fields as text.
    ///
    /// # Errors
    /// The number of the first field that is not UTF-8, from 1.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>, usize> {
        let mut from = 0;
        let mut texts = Vec::with_capacity(self.ends.len());
        for &end in self.ends {
            let text = self.bytes.get(from..end).and_then(|bytes| std::str::from_utf8(bytes).ok());
            texts.push(text.ok_or(texts.len() + 1)?);
            from = end;
        }
        Ok(texts)
    }

    /// The beginning of the record, for a person.
    pub(super) fn sample(&self, max: usize) -> String {
        let shown = &self.bytes[..self.bytes.len().min(max)];
        String::from_utf8_lossy(shown).into_owned()
    }
}

/// Reads records one by one.
pub(super) struct Records<R> {
    input: R,
    csv: Box<Reader>,
    block: Box<[u8]>,
    /// What of `block` is filled, and what of that is parsed.
    filled: usize,
    parsed: usize,
    /// Bytes of the file that are parsed.
    offset: u64,
    fields: Box<[u8]>,
    ends: Box<[usize]>,
}

impl<R: Read> Records<R> {
    /// Reads `input`, which stands at `place` of its file.
    pub(super) fn new(input: R, place: Place) -> Self {
        let mut csv = Box::new(Reader::new());
        csv.set_line(place.line);
        Self {
            input,
            csv,
            block: vec![0; BLOCK].into(),
            filled: 0,
            parsed: 0,
            offset: place.offset,
            fields: vec![0; MAX_RECORD].into(),
            ends: vec![0; MAX_FIELDS].into(),
        }
    }

    /// Where the next record begins, give or take the line end before it.
    pub(super) fn place(&self) -> Place {
        Place { offset: self.offset, line: self.csv.line() }
    }

    /// The next record and the line on which it begins; none at the end of the file.
    ///
    /// # Errors
    /// Whatever reading the file fails with.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Record<'_>)>> {
        self.skip_line_ends()?;
        let line = self.csv.line();
        let (mut bytes, mut fields, mut too_long) = (0, 0, false);
        loop {
            if self.parsed == self.filled {
                self.fill()?;
            }
            let input = &self.block[self.parsed..self.filled];
            let (result, read, wrote, ended) =
                self.csv.read_record(input, &mut self.fields[bytes..], &mut self.ends[fields..]);
            self.parsed += read;
            self.offset += read as u64;
            bytes += wrote;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                // Go on over the same space: what is read from here on is only skipped.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (bytes, fields, too_long) = (0, 0, true);
                }
                ReadRecordResult::Record if too_long => return Ok(Some((line, Record::TooLong))),
                ReadRecordResult::Record => {
                    let fields = Fields { bytes: &self.fields[..bytes], ends: &self.ends[..fields] };
                    return Ok(Some((line, Record::Fields(fields))));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Passes over blank lines and the second half of a CRLF, so that the record's own line is known.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            if self.parsed == self.filled {
                self.fill()?;
            }
            let ends = self.block[self.parsed..self.filled]
                .iter()
                .take_while(|b| matches!(b, b'\r' | b'\n'))
                .count();
            if ends == 0 {
                return Ok(());
            }
            // The parser must see them too: it counts lines, and waits for the LF of a CRLF.
            let input = &self.block[self.parsed..self.parsed + ends];
            let (_, read, ..) = self.csv.read_record(input, &mut self.fields, &mut self.ends);
            self.parsed += read;
            self.offset += read as u64;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.parsed = 0;
        self.filled = 0;
        // Short reads are filled up, so that a byte order mark is never split.
        while self.filled < self.block.len() {
            match self.input.read(&mut self.block[self.filled..]) {
                Ok(0) => break,
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Row = (u64, Option<Vec<String>>);

    fn read(mut records: Records<&[u8]>) -> Vec<Row> {
        let mut rows = Vec::new();
        while let Some((line, record)) = records.next().unwrap() {
            let texts = match record {
                Record::Fields(f) => Some(f.texts().unwrap().into_iter().map(str::to_owned).collect()),
                Record::TooLong => None,
            };
            rows.push((line, texts));
        }
        rows
    }

    fn rows(text: &[u8]) -> Vec<Row> {
        read(Records::new(text, Place::START))
    }

    #[test]
    fn lines_are_those_of_an_editor() {
        let text = "\u{feff}a,b\r\n\r\n1,\"x\ny\"\n\n\n3,4\r5,6";
        let row = |line, a: &str, b: &str| (line, Some(vec![a.to_owned(), b.to_owned()]));
        assert_eq!(
            rows(text.as_bytes()),
            // A lone CR ends a record but is no line to an editor that counts LF.
            [row(1, "a", "b"), row(3, "1", "x\ny"), row(7, "3", "4"), row(7, "5", "6")]
        );
    }

    #[test]
    fn a_huge_line_is_one_reject_in_bounded_memory() {
        let mut text = b"a,b\n".to_vec();
        text.extend(vec![b'x'; 10 * MAX_RECORD]);
        text.extend(b",1\n2,3\n");
        text.extend(vec![b','; 3 * MAX_FIELDS]);
        text.extend(b"\n4,5\n");
        let rows = rows(&text);
        let shape: Vec<_> = rows.iter().map(|(line, row)| (*line, row.is_some())).collect();
        assert_eq!(shape, [(1, true), (2, false), (3, true), (4, false), (5, true)]);
        assert_eq!(rows[4].1.as_deref(), Some(&["4".to_owned(), "5".to_owned()][..]));
    }

    proptest! {
        /// The records are those of the `csv` crate, and reading on from any record's place yields the same rest.
        #[test]
        fn records_and_places_agree_with_an_independent_reader(text in "([a1é,\"\n\r ]|,|\r\n|\n){0,60}") {
            let mut oracle = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
            let expected: Vec<Vec<String>> =
                oracle.records().map(|r| r.unwrap().iter().map(str::to_owned).collect()).collect();
            let all = rows(text.as_bytes());
            prop_assert_eq!(all.iter().filter_map(|r| r.1.clone()).collect::<Vec<_>>(), expected);
            let mut records = Records::new(text.as_bytes(), Place::START);
            for read_so_far in 0..all.len() {
                let place = records.place();
                let offset = usize::try_from(place.offset).unwrap();
                let rest = read(Records::new(&text.as_bytes()[offset..], place));
                prop_assert_eq!(&rest[..], &all[read_so_far..]);
                records.next().unwrap();
            }
        }
    }
}
