//! The instants of a cron expression in a time zone.
//!
//! Invariant: [`Timetable::after`] is later than what it was asked for, and [`Timetable::last`] names the instant that a walk by
//! `after` would reach last. Parsing, and what clocks that are set forward and back mean, is the libraries' business;
//! the time zones are those that are compiled in, so that engines agree whatever is installed around them.

use std::time::Duration;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};
use tidegate_proto::limits::MAX_CRON_BYTES;

/// From where it is seen whether an expression ever comes true: the beginning of 2000, in ms.
const EPOCH_MS: u64 = 946_684_800_000;
/// The longest name of a time zone that is looked up.
const MAX_ZONE_BYTES: usize = 64;
/// A day, in s.
const DAY: u64 = 24 * 3600;

/// When a schedule fires.
#[derive(Clone, Debug)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    name: String,
}

impl Timetable {
    /// Understands an expression and a zone's name, which is UTC if it is empty; the error is the field that is wrong, and why.
    pub fn parse(cron: &str, zone: &str) -> Result<Self, (&'static str, String)> {
        let name = if zone.is_empty() { "UTC" } else { zone };
        let known =
            Some(name).filter(|name| name.len() <= MAX_ZONE_BYTES).and_then(|n| TimeZone::get(n).ok());
        let Some(zone) = known.filter(|zone| !zone.is_unknown()) else {
            return Err(("time_zone", "must be an IANA time zone, such as Europe/Berlin".into()));
        };
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if cron.is_empty() || cron.len() > MAX_CRON_BYTES || !plain(cron) {
            return Err(("cron", format!("must have 1 to {MAX_CRON_BYTES} printable ASCII characters")));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(cron).map_err(|e| {
            ("cron", format!("must be `minute hour day-of-month month day-of-week` or the like: {e}"))
        })?;
        // As the time zones' data spell it.
        let name = zone.iana_name().unwrap_or(name).to_owned();
        let timetable = Self { cron, zone, name };
        match timetable.after(EPOCH_MS) {
            Some(_) => Ok(timetable),
            None => Err(("cron", "never comes true: there is no such day".into())),
        }
    }

    /// The zone's name.
    pub fn zone(&self) -> &str {
        &self.name
    }

    /// The first instant after `ms`, all in ms since 1970; `None` if there is none.
    pub fn after(&self, ms: u64) -> Option<u64> {
        let from = Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }

    /// The last instant from `from` to `to`, both included.
    pub fn last(&self, from: u64, to: u64) -> Option<u64> {
        let upto = |ms: u64| self.after(ms).filter(|at| *at <= to);
        // An instant follows `low` and none follows `high`; when they are a second apart, that instant is the last.
        let (mut low, mut high) = (from.saturating_sub(1), to);
        let mut last = upto(low)?;
        while high - low > 1000 {
            let middle = low + (high - low) / 2;
            match upto(middle) {
                Some(at) => (low, last) = (middle, at),
                None => high = middle,
            }
        }
        Some(last)
    }

    /// How close two instants come to each other by the clock on the wall, if days follow each other.
    pub fn closest(&self) -> Duration {
        let pattern = &self.cron.pattern;
        let [hours, minutes, seconds] =
            [&pattern.hours, &pattern.minutes, &pattern.seconds].map(|field| field.values());
        let mut times = Vec::new();
        for (hour, minute) in hours.iter().flat_map(|h| minutes.iter().map(move |m| (*h, *m))) {
            times.extend(
                seconds.iter().map(|s| (u64::from(hour) * 60 + u64::from(minute)) * 60 + u64::from(*s)),
            );
        }
        let again = times.first().map(|first| first + DAY);
        let gaps =
            times.iter().zip(times.iter().skip(1).chain(&again)).map(|(at, next)| next.saturating_sub(*at));
        Duration::from_secs(gaps.min().unwrap_or(DAY))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    /// The next instants, as texts.
    fn walk(cron: &str, zone: &str, from: &str, n: usize) -> Vec<String> {
        let timetable = Timetable::parse(cron, zone).unwrap();
        let next = std::iter::successors(Some(ms(from)), |at| timetable.after(*at));
        let text = |at: u64| Timestamp::from_millisecond(i64::try_from(at).unwrap()).unwrap().to_string();
        next.skip(1).take(n).map(text).collect()
    }

    #[test]
    fn a_time_that_does_not_exist_fires_once_at_the_end_of_the_hole() {
        // 2027-03-28, 2:00 is followed by 3:00 in Berlin.
        assert_eq!(
            walk("30 2 * * *", "Europe/Berlin", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T01:30:00Z", "2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]
        );
        // An interval leaves the hour out.
        assert_eq!(
            walk("*/30 * * * *", "Europe/Berlin", "2027-03-28T00:00:00Z", 3),
            ["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z"]
        );
    }

    #[test]
    fn the_least_distance_is_that_of_two_times_of_day() {
        for (cron, seconds) in [
            ("* * * * * *", 1),
            ("*/7 * * * * *", 4),
            ("58,59 0 3 * * 1", 1),
            ("0 30 2 * * *", 24 * 3600),
            ("* * * * *", 60),
            ("*/45 * * * *", 15 * 60),
            ("0,59 0,23 * * *", 60),
            ("@hourly", 3600),
            ("@yearly", 24 * 3600),
        ] {
            let timetable = Timetable::parse(cron, "Europe/Berlin").unwrap();
            assert_eq!(timetable.closest().as_secs(), seconds, "{cron}");
        }
    }

    #[test]
    fn a_time_that_occurs_twice_fires_once() {
        // 2027-10-31, 3:00 is followed by 2:00 in Berlin.
        assert_eq!(
            walk("30 2 * * *", "Europe/Berlin", "2027-10-30T00:00:00Z", 3),
            ["2027-10-30T00:30:00Z", "2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"]
        );
        // An interval goes through both.
        assert_eq!(
            walk("30 * * * *", "Europe/Berlin", "2027-10-31T00:00:00Z", 3),
            ["2027-10-31T00:30:00Z", "2027-10-31T01:30:00Z", "2027-10-31T02:30:00Z"]
        );
    }

    #[test]
    fn expressions_are_understood_or_refused_with_the_field() {
        for (cron, next) in [
            ("@daily", "2027-01-02T00:00:00Z"),
            ("*/15 * * * *", "2027-01-01T00:15:00Z"),
            ("*/10 * * * * *", "2027-01-01T00:00:10Z"),
            ("0 9 * * MON-FRI", "2027-01-01T09:00:00Z"),
            ("0 0 L * *", "2027-01-31T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
        ] {
            assert_eq!(walk(cron, "", "2027-01-01T00:00:00Z", 1), [next], "{cron}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "a b c d e",
            "@reboot",
            "@every 5m",
            "*/0 * * * *",
            "5-1 * * * *",
            "0 0 31 2 *",
            "0 0 30 2 +MON",
            "0 0 * * * * 2030",
            "0 0 1 1 *\n",
            "0 0 1 1 \u{1d7d9}",
            "* * * * * * * *",
        ] {
            let refused = Timetable::parse(bad, "").map_err(|(field, _)| field);
            assert_eq!(refused.err(), Some("cron"), "{bad:?}");
        }
        assert_eq!(Timetable::parse(&format!("{} * * * *", "0,".repeat(80)), "").err().unwrap().0, "cron");
        for bad in ["Mars/Olympus", "../../etc/passwd", "+02:00", "EST5EDT,M3.2.0,M11.1.0", &"a/".repeat(100)]
        {
            assert_eq!(Timetable::parse("@daily", bad).err().map(|e| e.0), Some("time_zone"), "{bad:?}");
        }
        assert_eq!(Timetable::parse("@daily", "europe/berlin").unwrap().zone(), "Europe/Berlin");
    }

    fn field(from: u32, to: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (from..=to).prop_map(|n| n.to_string()),
            (2..=to).prop_map(|n| format!("*/{n}")),
            (from..=to, from..=to).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            (from..=to, from..=to).prop_map(|(a, b)| format!("{a},{b}")),
        ]
    }

    fn expression() -> impl Strategy<Value = String> {
        let day = (
            prop_oneof![4 => Just("*".to_owned()), 1 => field(1, 28)],
            Just("*"),
            prop_oneof![4 => Just("*".to_owned()), 1 => field(0, 6)],
        );
        let times = (prop_oneof![3 => Just("0".to_owned()), 1 => field(0, 59)], field(0, 59), field(0, 23));
        (times, day)
            .prop_map(|((s, m, h), (day, month, weekday))| format!("{s} {m} {h} {day} {month} {weekday}"))
    }

    /// Zones whose clocks are moved by an hour, by half of one, at midnight, never, and by a whole day.
    const ZONES: [&str; 6] = [
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "America/Santiago",
        "Africa/Casablanca",
        "UTC",
        "Pacific/Apia",
    ];

    proptest! {
        #[test]
        fn instants_only_grow_and_the_last_is_the_one_that_a_walk_ends_at(
            cron in expression(), zone in prop::sample::select(&ZONES[..]), hours in 0u64..24 * 366, offset in 0u64..3_600_000, length in 0u64..12 * 3_600_000,
        ) {
            // 2011 is the year in which Apia left a day out.
            let from = ms("2011-01-01T00:00:00Z") + hours * 3_600_000 + offset;
            let timetable = Timetable::parse(&cron, zone).unwrap();
            let (mut at, mut last) = (from - 1, None);
            for _ in 0..500 {
                let next = timetable.after(at).unwrap();
                prop_assert!(next > at, "{cron} {zone}: {next} after {at}");
                prop_assert_eq!(next % 1000, 0);
                // Asked from anywhere in between, the answer is the same.
                prop_assert_eq!(timetable.after(at + (next - at) / 2), Some(next), "{} {}", cron, zone);
                if next > from + length {
                    prop_assert_eq!(timetable.last(from, from + length), last, "{} {}", cron, zone);
                    break;
                }
                (at, last) = (next, Some(next));
            }
        }

        #[test]
        fn no_text_does_harm(cron in any::<String>(), odd in "[-0-9*/,LW#?+@ A-Z]{0,40}", zone in any::<String>()) {
            for cron in [cron, odd] {
                if let Ok(timetable) = Timetable::parse(&cron, "Europe/Berlin") {
                    prop_assert!(timetable.after(EPOCH_MS * 2) > Some(EPOCH_MS * 2));
                }
            }
            let _ = Timetable::parse("@daily", &zone);
        }
    }
}
