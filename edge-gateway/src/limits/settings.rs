//! The `[limits]` section of the configuration file: how much each address, subject and tenant may have.
//!
//! What the section does not name keeps its default; `"off"` lifts a limit. Without the section, the defaults hold
//! wherever strangers can connect, and nothing is limited on a loopback address.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use redis::{Client, RedisResult};
use serde::Deserialize;

use super::gcra::Rate;

/// Whose share is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A client's address; IPv6 by /64.
    Ip,
    /// An authenticated subject.
    Subject,
    /// A tenant.
    Tenant,
}

impl Scope {
    pub(crate) const ALL: [Self; 3] = [Self::Ip, Self::Subject, Self::Tenant];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Subject => "subject",
            Self::Tenant => "tenant",
        }
    }

    /// The name of the policy that limits its open streams.
    pub(crate) fn streams(self) -> &'static str {
        match self {
            Self::Ip => "streams-ip",
            Self::Subject => "streams-subject",
            Self::Tenant => "streams-tenant",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Whatever changes something.
    Submit,
    /// Opening a stream.
    Connect,
    /// Reading.
    Read,
}

impl Class {
    /// The name of the policy that limits it for a scope.
    pub(crate) fn policy(self, scope: Scope) -> &'static str {
        match (self, scope) {
            (Self::Submit, Scope::Ip) => "submit-ip",
            (Self::Submit, Scope::Subject) => "submit-subject",
            (Self::Submit, Scope::Tenant) => "submit-tenant",
            (Self::Connect, Scope::Ip) => "connect-ip",
            (Self::Connect, Scope::Subject) => "connect-subject",
            (Self::Connect, Scope::Tenant) => "connect-tenant",
            (Self::Read, Scope::Ip) => "read-ip",
            (Self::Read, Scope::Subject) => "read-subject",
            (Self::Read, Scope::Tenant) => "read-tenant",
        }
    }
}

/// The limits of one scope; what is unset is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    submit: Option<Rate>,
    connect: Option<Rate>,
    read: Option<Rate>,
    /// Streams at once.
    pub(crate) streams: Option<u32>,
    /// Connections at once; only for addresses.
    pub(crate) connections: Option<u32>,
}

impl Share {
    /// The rate of a class.
    pub(crate) fn rate(&self, class: Class) -> Option<Rate> {
        match class {
            Class::Submit => self.submit,
            Class::Connect => self.connect,
            Class::Read => self.read,
        }
    }
}

/// All limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    pub(crate) ip: Share,
    pub(crate) subject: Share,
    pub(crate) tenant: Share,
    /// How many clients one gateway remembers.
    pub(crate) max_keys: usize,
    /// How long a stream's slot in Redis outlives its gateway.
    pub(crate) lease: Duration,
    /// The Redis through which gateways share their counts.
    pub(crate) redis: Option<RedisUrl>,
}

/// Where Redis is; never shown, because it may carry a password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    pub(super) fn client(&self) -> RedisResult<Client> {
        Client::open(&*self.0)
    }
}

impl FromStr for RedisUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let url = Self(text.to_owned());
        url.client().map_err(|_| "is no URL such as redis://127.0.0.1:6379")?;
        Ok(url)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(…)")
    }
}

/// How long a slot in Redis outlives its gateway unless told otherwise.
const LEASE: Duration = Duration::from_secs(30);

/// How many clients one gateway remembers unless told otherwise: some 6 MB.
const MAX_KEYS: usize = 100_000;

impl LimitSettings {
    pub(crate) fn of(&self, scope: Scope) -> &Share {
        match scope {
            Scope::Ip => &self.ip,
            Scope::Subject => &self.subject,
            Scope::Tenant => &self.tenant,
        }
    }

    /// What holds where strangers can connect. Generous: an office behind one address, a page with twenty streams.
    #[must_use]
    pub fn public() -> Self {
        let rate = |quota: u32| Rate::new(NonZeroU32::new(quota)?, NonZeroU32::new(60)?);
        let share = |submit, connect, read, streams, connections| Share {
            submit: rate(submit),
            connect: rate(connect),
            read: rate(read),
            streams: Some(streams),
            connections,
        };
        Self {
            ip: share(600, 600, 3_000, 500, Some(1_000)),
            subject: share(120, 300, 1_200, 100, None),
            tenant: share(1_200, 3_000, 12_000, 5_000, None),
            max_keys: MAX_KEYS,
            lease: LEASE,
            redis: None,
        }
    }

    /// What a section says, over the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn read(section: toml::Table) -> Result<Self, Vec<String>> {
        let section: Section = toml::Value::Table(section)
            .try_into()
            .map_err(|e| vec![format!("[limits]: {}", one_line(&e))])?;
        let mut settings = Self::public();
        let mut errors = Vec::new();
        for (scope, entry, share) in [
            (Scope::Ip, section.ip, &mut settings.ip),
            (Scope::Subject, section.subject, &mut settings.subject),
            (Scope::Tenant, section.tenant, &mut settings.tenant),
        ] {
            let mut rate =
                |class: &str, given: Option<Setting<RateEntry>>, now: &mut Option<Rate>| match given {
                    None => {}
                    Some(Setting::Off(_)) => *now = None,
                    Some(Setting::On(entry)) => {
                        *now = Rate::new(entry.quota, entry.seconds);
                        if now.is_none() {
                            let scope = scope.name();
                            errors.push(format!(
                                "[limits.{scope}] {class}: more than a million a second is no limit"
                            ));
                        }
                    }
                };
            rate("submit", entry.submit, &mut share.submit);
            rate("connect", entry.connect, &mut share.connect);
            rate("read", entry.read, &mut share.read);
            count(entry.streams.as_ref(), &mut share.streams);
            if scope != Scope::Ip && entry.connections.is_some() {
                errors.push(format!("[limits.{}] connections: only [limits.ip] has them", scope.name()));
            } else {
                count(entry.connections.as_ref(), &mut share.connections);
            }
        }
        settings.max_keys = section.max_keys.map_or(MAX_KEYS, |keys| keys.get() as usize);
        match section.lease_seconds {
            None => {}
            Some(seconds @ 3..=3600) => settings.lease = Duration::from_secs(seconds.into()),
            Some(_) => errors.push("[limits] lease_seconds must be between 3 and 3600".to_owned()),
        }
        match section.redis.as_deref().map(RedisUrl::from_str).transpose() {
            Ok(redis) => settings.redis = redis,
            Err(error) => errors.push(format!("[limits] redis {error}")),
        }
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }
}

impl FromStr for LimitSettings {
    type Err = String;

    /// Reads what stands in the section `[limits]`.
    fn from_str(section: &str) -> Result<Self, String> {
        let table = section.parse().map_err(|e: toml::de::Error| e.to_string())?;
        Self::read(table).map_err(|errors| errors.join("\n"))
    }
}

fn count(given: Option<&Setting<u32>>, now: &mut Option<u32>) {
    match given {
        None => {}
        Some(Setting::Off(_)) => *now = None,
        Some(Setting::On(count)) => *now = Some(*count),
    }
}

/// The parser's word on one line.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    #[serde(default)]
    ip: Entry,
    #[serde(default)]
    subject: Entry,
    #[serde(default)]
    tenant: Entry,
    max_keys: Option<NonZeroU32>,
    redis: Option<String>,
    lease_seconds: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    submit: Option<Setting<RateEntry>>,
    connect: Option<Setting<RateEntry>>,
    read: Option<Setting<RateEntry>>,
    streams: Option<Setting<u32>>,
    connections: Option<Setting<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, { quota = N, seconds = N }, or \"off\"")]
enum Setting<T> {
    Off(Off),
    On(T),
}

#[derive(Deserialize)]
enum Off {
    #[serde(rename = "off")]
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateEntry {
    quota: NonZeroU32,
    seconds: NonZeroU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LimitSettings, Vec<String>> {
        LimitSettings::read(text.parse().unwrap())
    }

    #[test]
    fn what_is_not_named_keeps_its_default() {
        let settings =
            read("ip = { submit = { quota = 5, seconds = 10 }, streams = 3, connections = \"off\" }")
                .unwrap();
        assert_eq!(settings.ip.submit, Rate::new(5.try_into().unwrap(), 10.try_into().unwrap()));
        assert_eq!((settings.ip.streams, settings.ip.connections), (Some(3), None));
        assert_eq!(
            (settings.ip.read, settings.tenant),
            (LimitSettings::public().ip.read, LimitSettings::public().tenant)
        );
        assert_eq!(read("[subject]\nread = \"off\"").unwrap().subject.read, None);
        assert_eq!(read("").unwrap(), LimitSettings::public());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "nonsense = 1",
            "[ip]\nsubmit = 5",
            "[ip]\nsubmit = \"of\"",
            "[ip]\nsubmit = { quota = 0, seconds = 1 }",
            "[ip]\nsubmit = { quota = 1, seconds = 1, burst = 1 }",
            "[ip]\nsubmit = { quota = 4000000, seconds = 1 }",
            "[tenant]\nconnections = 3",
            "[ip]\nstreams = -1",
            "max_keys = 0",
            "lease_seconds = 1",
            "redis = \"http://h\"",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(
            read("[subject]\nconnections = 1\nread = { quota = 4000000, seconds = 1 }").unwrap_err().len(),
            2
        );
    }
}
