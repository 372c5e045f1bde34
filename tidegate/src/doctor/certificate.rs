//! From when until when a server's certificate is valid (RFC 5280, 4.1.2.5).
//!
//! Reads the two times of a certificate that the TLS library has accepted already, and nothing else of it: whether it may
//! be trusted is not decided here.

use std::{ops::Range, time::SystemTime};

/// The tag of the version, the only element before the serial number that may be left out.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The times in a certificate (DER); nothing if it is none.
pub(super) fn validity(der: &[u8]) -> Option<Range<SystemTime>> {
    let certificate = element(der)?.content;
    let mut fields = element(certificate)?.content;
    if element(fields)?.tag == VERSION {
        fields = element(fields)?.rest;
    }
    for _serial_signature_issuer in 0..3 {
        fields = element(fields)?.rest;
    }
    let begin = element(element(fields)?.content)?;
    Some(time(&begin)?..time(&element(begin.rest)?)?)
}

/// A value in DER, and what follows it.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some(Element { tag, content, rest })
}

/// `YYMMDDHHMMSSZ` of 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn time(element: &Element<'_>) -> Option<SystemTime> {
    let text = str::from_utf8(element.content).ok()?;
    let text = match (element.tag, text.get(..2)?) {
        (UTC_TIME, year) if year < "50" => format!("20{text}"),
        (UTC_TIME, _) => format!("19{text}"),
        (GENERALIZED_TIME, _) => text.to_owned(),
        _ => return None,
    };
    let part = |range: Range<usize>| text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let (date, at) = ((part(0..4)?, part(4..6)?, part(6..8)?), (part(8..10)?, part(10..12)?, part(12..14)?));
    if text.get(14..)? != "Z" {
        return None;
    }
    let text = format!("{}-{}-{}T{}:{}:{}Z", date.0, date.1, date.2, at.0, at.1, at.2);
    SystemTime::try_from(text.parse::<prost_types::Timestamp>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        let len = if high == 0 && low < 0x80 { vec![low] } else { vec![0x82, high, low] };
        [&[tag], &*len, content].concat()
    }

    /// What stands before the key, with a name as long as some are.
    fn certificate(version: bool, from: (u8, &str), until: (u8, &str)) -> Vec<u8> {
        let time = |(tag, text): (u8, &str)| der(tag, text.as_bytes());
        let validity = der(0x30, &[time(from), time(until)].concat());
        let version = if version { der(VERSION, &der(2, &[2])) } else { Vec::new() };
        let fields =
            [version, der(2, &[7]), der(0x30, &[]), der(0x30, &[b'x'; 300]), validity, der(0x30, &[])];
        der(0x30, &der(0x30, &fields.concat()))
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        let old = certificate(false, (UTC_TIME, "700101000001Z"), (UTC_TIME, "491231235959Z"));
        assert_eq!(validity(&old), Some(at(1)..at(2_524_607_999)));
        let new = certificate(true, (UTC_TIME, "231114221320Z"), (GENERALIZED_TIME, "20500101000000Z"));
        assert_eq!(validity(&new), Some(at(1_700_000_000)..at(2_524_608_000)));
        for bad in
            ["", "Z", "2311142213200", "231114221320+0100", "23111422132ZZ", "231314221320Z", "ä31114221320Z"]
        {
            assert_eq!(validity(&certificate(true, (UTC_TIME, bad), (UTC_TIME, bad))), None, "{bad}");
        }
    }

    #[test]
    fn a_piece_of_a_certificate_is_none() {
        let whole = certificate(true, (UTC_TIME, "231114221320Z"), (UTC_TIME, "491231235959Z"));
        assert!((0..whole.len()).all(|len| validity(&whole[..len]).is_none()));
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes: Vec<u8>, at: prop::sample::Index, byte: u8) {
            let _ = validity(&bytes);
            bytes = certificate(true, (UTC_TIME, "231114221320Z"), (GENERALIZED_TIME, "20500101000000Z"));
            *at.get_mut(&mut bytes) = byte;
            let _ = validity(&bytes);
        }
    }
}
