//! What one gateway remembers of its clients: when their quota is whole again, and how many streams they have open.
//!
//! Bounded: a key whose quota is whole is forgotten, and when there are too many keys that are not, one of those
//! nearest to it among a few is. Streams are bounded by the process's own cap.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use super::{gcra::Rate, settings::Scope};

/// Among how many the one to be forgotten is chosen.
const SAMPLE: usize = 16;

/// Who is counted: a hash, so that neither memory nor Redis holds names or addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// What is counted: a scope's requests of a class, or its streams.
    pub(crate) what: &'static str,
    pub(crate) who: [u8; 16],
}

impl Key {
    /// A client's address; of IPv6 the network, because whoever has one address there has 2^64.
    pub(crate) fn ip(what: &'static str, ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::hash(what, Scope::Ip, &[&v4.octets()]),
            IpAddr::V6(v6) => Self::hash(what, Scope::Ip, &[&v6.octets()[..8]]),
        }
    }

    /// A subject within its tenant.
    pub(crate) fn subject(what: &'static str, tenant: &str, subject: &str) -> Self {
        Self::hash(what, Scope::Subject, &[tenant.as_bytes(), subject.as_bytes()])
    }

    /// A tenant.
    pub(crate) fn tenant(what: &'static str, tenant: &str) -> Self {
        Self::hash(what, Scope::Tenant, &[tenant.as_bytes()])
    }

    fn hash(what: &'static str, scope: Scope, parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(scope.name());
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let mut who = [0; 16];
        who.copy_from_slice(&hasher.finalize()[..16]);
        Self { what, who }
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The theoretical arrival times, in microseconds of a clock that only grows.
#[derive(Debug)]
pub(crate) struct Cells {
    arrivals: IndexMap<Key, u64>,
    max: usize,
}

impl Cells {
    pub(crate) fn new(max: usize) -> Self {
        Self { arrivals: IndexMap::new(), max: max.max(1) }
    }

    /// The debt of `key`.
    pub(crate) fn debt(&self, key: &Key, now: u64) -> u64 {
        self.arrivals.get(key).map_or(0, |at| at.saturating_sub(now))
    }

    /// Charges all or none of the keys; their debts afterwards, and whether they were charged.
    pub(crate) fn charge(&mut self, charges: &[(Key, Rate)], now: u64) -> (Vec<u64>, bool) {
        let before: Vec<u64> = charges.iter().map(|(key, _)| self.debt(key, now)).collect();
        let after: Option<Vec<u64>> =
            charges.iter().zip(&before).map(|((_, rate), debt)| rate.charge(*debt)).collect();
        match after {
            Some(after) => {
                for ((key, _), debt) in charges.iter().zip(&after) {
                    self.set(*key, now, *debt);
                }
                (after, true)
            }
            None => (before, false),
        }
    }

    /// Learns a debt from elsewhere.
    pub(crate) fn set(&mut self, key: Key, now: u64, debt: u64) {
        if self.arrivals.len() >= self.max && !self.arrivals.contains_key(&key) {
            let sample = (0..SAMPLE).map(|_| rand::random_range(0..self.arrivals.len()));
            let at = |index: &usize| self.arrivals.get_index(*index).map_or(0, |(_, at)| *at);
            if let Some(index) = sample.min_by_key(at) {
                self.arrivals.swap_remove_index(index);
            }
        }
        self.arrivals.insert(key, now + debt);
    }

    /// Forgets whoever is as good as new; to be called every few seconds.
    pub(crate) fn tidy(&mut self, now: u64) {
        self.arrivals.retain(|_, at| *at > now);
    }

    pub(crate) fn len(&self) -> usize {
        self.arrivals.len()
    }
}

/// How many of something each key has, such as open streams.
#[derive(Debug, Default)]
pub(crate) struct Counts(HashMap<Key, u32>);

impl Counts {
    /// The first of `caps` that more than fill.
    pub(crate) fn over(&self, caps: &[(Key, u32)]) -> Option<usize> {
        caps.iter().position(|(key, cap)| self.of(key) > *cap)
    }

    /// Takes one of each, or none; if none, the index of the first whose cap is reached.
    pub(crate) fn take(&mut self, caps: &[(Key, u32)]) -> Result<(), usize> {
        if let Some(full) = caps.iter().position(|(key, cap)| self.of(key) >= *cap) {
            return Err(full);
        }
        for (key, _) in caps {
            *self.0.entry(*key).or_default() += 1;
        }
        Ok(())
    }

    /// Gives one of each back.
    pub(crate) fn give_back(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            if let Some(count) = self.0.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// How many `key` has.
    pub(crate) fn of(&self, key: &Key) -> u32 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(quota: u32) -> Rate {
        Rate::new(quota.try_into().unwrap(), 60.try_into().unwrap()).unwrap()
    }

    #[test]
    fn e51_ipv6_counts_by_network_and_mapped_ipv4_as_itself() {
        let key = |ip: &str| Key::ip("x", ip.parse().unwrap());
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.2"), key("10.0.0.1"));
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        assert_ne!(Key::subject("x", "ab", "c"), Key::subject("x", "a", "bc"));
        assert_ne!(Key::tenant("x", "a").who, Key::subject("x", "a", "").who);
    }

    #[test]
    fn e50_a_refusal_charges_nobody() {
        let (a, b) = (Key::tenant("x", "a"), Key::tenant("x", "b"));
        let mut cells = Cells::new(10);
        assert!(cells.charge(&[(b, rate(1))], 0).1);
        assert!(!cells.charge(&[(a, rate(2)), (b, rate(1))], 1).1);
        assert_eq!(cells.debt(&a, 1), 0);
        let mut counts = Counts::default();
        counts.take(&[(b, 1)]).unwrap();
        assert_eq!(counts.take(&[(a, 1), (b, 1)]), Err(1));
        assert_eq!(counts.of(&a), 0);
        counts.give_back([b]);
        assert!(counts.0.is_empty());
    }

    #[test]
    fn e50_a_flood_of_new_keys_is_bounded_and_forgets_the_harmless_first() {
        let mut cells = Cells::new(1000);
        let banned = Key::tenant("x", "banned");
        for _ in 0..100 {
            cells.charge(&[(banned, rate(100))], 0);
        }
        for n in 0..20_000u32 {
            cells.charge(&[(Key::tenant("x", &n.to_string()), rate(100))], 0);
            assert!(cells.len() <= 1000);
        }
        assert!(!cells.charge(&[(banned, rate(100))], 0).1, "a flood lifted the ban");
        cells.tidy(600_000);
        assert_eq!(cells.len(), 1, "whoever owes nothing is forgotten");
    }
}
