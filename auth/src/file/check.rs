//! What must hold in the `[auth]` section beyond its shape: names, keys, times, and the files that it points to.
//!
//! Collects every error, each with its place, instead of stopping at the first.

use std::{path::Path, time::Duration};

use prost_types::Timestamp;
use serde::Deserialize;
use tidegate_proto::limits;

use super::{
    ApiKey, ApiKeyEntry, IssuerEntry, OneOrMany, Revoked, RevokedEntry, Section, SessionEntry,
    SessionSettings, Settings, TicketSettings, TicketsEntry, default_tenant, is_subject, read,
};
use crate::{
    Scope, Scopes, fingerprint, hex,
    issuer::{IssuerSettings, KeySource, Tenant},
    sha256, unhex,
};

/// The shortest HS256 secret (RFC 7518, section 3.2), in bytes.
const SHORTEST_SECRET: usize = 32;
/// The longest leeway, in seconds.
const LONGEST_LEEWAY: u64 = 60;
/// The longest life of a ticket or session, in seconds: a week.
const LONGEST_LIFE: u64 = 7 * 86_400;

/// Collects errors, and whatever was read.
pub(super) struct Check<'a> {
    pub(super) dir: &'a Path,
    pub(super) errors: Vec<String>,
    pub(super) read: Vec<String>,
}

impl Check<'_> {
    pub(super) fn section(&mut self, section: Section) -> Settings {
        let entries =
            |check: &mut Self, kind: &str, tables: Vec<toml::Table>| -> Vec<(String, toml::Table)> {
                if tables.len() > 1000 {
                    check.errors.push(format!("auth.{kind}: more than 1,000 entries"));
                }
                let place = |(n, table)| (format!("auth.{kind} number {}", n + 1), table);
                tables.into_iter().enumerate().map(place).collect()
            };
        let mut issuers = Vec::new();
        for (place, table) in entries(self, "issuer", section.issuer) {
            let reading = reading(table.clone());
            if let Some(entry) = self.entry(&place, table) {
                issuers.extend(self.issuer(&place, entry, reading));
            }
        }
        let mut api_keys = Vec::new();
        for (place, table) in entries(self, "api_key", section.api_key) {
            if let Some(entry) = self.entry(&place, table) {
                api_keys.extend(self.api_key(&place, entry));
            }
        }
        let mut revoked = Vec::new();
        for (place, table) in entries(self, "revoked", section.revoked) {
            if let Some(entry) = self.entry::<RevokedEntry>(&place, table) {
                if entry.jti.is_none() && entry.subject.is_none() {
                    self.errors.push(format!("{place}: name a jti or a subject"));
                }
                let before = entry.before.and_then(|at| self.seconds(&format!("{place}: before"), at));
                revoked.push(Revoked {
                    jti: entry.jti,
                    subject: entry.subject,
                    tenant: entry.tenant,
                    before,
                });
            }
        }
        for (n, issuer) in issuers.iter().enumerate() {
            if issuers[..n].iter().any(|other| other.issuer == issuer.issuer) {
                self.errors.push(format!("auth.issuer {:?} stands there twice", issuer.issuer));
            }
        }
        for (n, key) in api_keys.iter().enumerate() {
            if api_keys[..n].iter().any(|other| other.sha256 == key.sha256) {
                self.errors
                    .push(format!("auth.api_key of {:?}: the same key stands there twice", key.subject));
            }
        }
        let session = self.entry("auth.session", section.session);
        let session = session.unwrap_or(SessionEntry { enabled: None, secure: None, lifetime_seconds: None });
        let tickets = self.entry("auth.tickets", section.tickets);
        let tickets = tickets.unwrap_or(TicketsEntry { first_use_seconds: None, lifetime_seconds: None });
        Settings {
            session: SessionSettings {
                enabled: session.enabled.unwrap_or(true),
                secure: session.secure,
                lifetime: self.within(
                    "auth.session.lifetime_seconds",
                    session.lifetime_seconds,
                    43_200,
                    60,
                    LONGEST_LIFE,
                ),
            },
            tickets: TicketSettings {
                first_use: self.within(
                    "auth.tickets.first_use_seconds",
                    tickets.first_use_seconds,
                    60,
                    1,
                    600,
                ),
                lifetime: self.within(
                    "auth.tickets.lifetime_seconds",
                    tickets.lifetime_seconds,
                    43_200,
                    60,
                    LONGEST_LIFE,
                ),
            },
            reload: self.within("auth.reload_seconds", section.reload_seconds, 5, 1, 60),
            secret_file: section.secret_file.map(|path| self.dir.join(path)),
            issuers,
            api_keys,
            revoked,
            digest: sha256(self.read.join("\0").as_bytes()),
        }
    }

    fn entry<T: for<'de> Deserialize<'de>>(&mut self, place: &str, table: toml::Table) -> Option<T> {
        let parsed = table.try_into::<T>();
        parsed.map_err(|error| self.errors.push(format!("{place}: {}", error.message()))).ok()
    }

    fn within(&mut self, place: &str, given: Option<u64>, default: u64, least: u64, most: u64) -> Duration {
        let seconds = given.unwrap_or(default);
        if !(least..=most).contains(&seconds) {
            self.errors.push(format!("{place} must be {least} to {most}"));
        }
        Duration::from_secs(seconds)
    }

    fn seconds(&mut self, place: &str, at: toml::value::Datetime) -> Option<u64> {
        let parsed = at.to_string().parse::<Timestamp>().ok().filter(|_| at.offset.is_some());
        let seconds = parsed.and_then(|at| u64::try_from(at.seconds).ok());
        if seconds.is_none() {
            self.errors.push(format!("{place} must be a time with its offset, such as 2030-01-31T12:00:00Z"));
        }
        seconds
    }

    fn scopes(&mut self, place: &str, names: &[String]) -> Scopes {
        let mut scopes = Scopes::default();
        for name in names {
            match Scope::from_name(name) {
                Some(scope) => scopes.extend([scope]),
                None => self.errors.push(format!(
                    "{place}: {name:?} is no scope; there are {}",
                    Scope::ALL.map(Scope::name).join(", ")
                )),
            }
        }
        scopes
    }

    fn tenant(&mut self, place: &str, tenant: &str) {
        if !limits::is_name(tenant) {
            self.errors.push(format!("{place}: the tenant {tenant:?} is not [a-z][a-z0-9._-]{{0,63}}"));
        }
    }

    fn api_key(&mut self, place: &str, entry: ApiKeyEntry) -> Option<ApiKey> {
        let place = format!("{place} ({:?})", entry.name);
        self.tenant(&place, &entry.tenant);
        if !is_subject(&entry.subject) {
            self.errors
                .push(format!("{place}: the subject must have 1 to 256 bytes and no control characters"));
        }
        let scopes = self.scopes(&place, &entry.scopes);
        let expires = entry.expires.and_then(|at| self.seconds(&format!("{place}: expires"), at));
        let Some(sha256) = unhex(&entry.sha256) else {
            self.errors.push(format!(
                "{place}: sha256 must be the 64 hexadecimal digits that `tidegate token key` prints, never the key itself"
            ));
            return None;
        };
        let fingerprint = hex(&sha256[..8]);
        Some(ApiKey { sha256, fingerprint, tenant: entry.tenant, subject: entry.subject, scopes, expires })
    }

    fn issuer(&mut self, place: &str, entry: IssuerEntry, reading: String) -> Option<IssuerSettings> {
        let place = format!("{place} ({:?})", entry.issuer);
        let before = self.errors.len();
        let audiences = match entry.audience {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        };
        if entry.issuer.is_empty() || audiences.is_empty() || audiences.iter().any(String::is_empty) {
            self.errors.push(format!("{place}: issuer and audience must not be empty"));
        }
        let algorithms = self.algorithms(&place, &entry.algorithms);
        let symmetric = entry.algorithms.iter().any(|name| name == "HS256");
        let keys = match (entry.secret_file, entry.jwks, symmetric) {
            (Some(path), None, true) if entry.algorithms.len() == 1 => self.secret(&place, &path),
            (None, Some(jwks), false) => self.jwks(&place, jwks),
            // A public key that is taken for a shared secret is the oldest way in.
            _ => {
                self.errors.push(format!(
                    "{place}: either algorithms = [\"HS256\"] with a secret_file, or public-key algorithms with jwks"
                ));
                None
            }
        };
        let tenant = match (entry.tenant, entry.tenant_claim) {
            (Some(tenant), None) => {
                self.tenant(&place, &tenant);
                Tenant::Fixed(tenant)
            }
            (None, Some(claim)) => Tenant::Claim(claim),
            (None, None) => Tenant::Fixed(default_tenant()),
            (Some(_), Some(_)) => {
                self.errors.push(format!("{place}: either tenant or tenant_claim"));
                return None;
            }
        };
        if entry.leeway_seconds > LONGEST_LEEWAY {
            self.errors.push(format!("{place}: leeway_seconds must be at most {LONGEST_LEEWAY}"));
        }
        let refresh =
            self.within(&format!("{place}: refresh_seconds"), Some(entry.refresh_seconds), 0, 1, 86_400);
        let grants =
            entry.grants.into_iter().map(|(name, scopes)| (name, self.scopes(&place, &scopes))).collect();
        (self.errors.len() == before).then_some(())?;
        Some(IssuerSettings {
            issuer: entry.issuer,
            audiences,
            algorithms,
            keys: keys?,
            tenant,
            subject_claim: entry.subject_claim,
            subject_prefix: entry.subject_prefix,
            scopes_claim: entry.scopes_claim,
            grants,
            leeway: entry.leeway_seconds,
            refresh,
            reading,
        })
    }

    fn algorithms(&mut self, place: &str, names: &[String]) -> Vec<jsonwebtoken::Algorithm> {
        use jsonwebtoken::Algorithm;
        if names.is_empty() {
            self.errors
                .push(format!("{place}: name at least one of the algorithms HS256, RS256, ES256, EdDSA"));
        }
        let of = |name: &String| match name.as_str() {
            "HS256" => Some(Algorithm::HS256),
            "RS256" => Some(Algorithm::RS256),
            "ES256" => Some(Algorithm::ES256),
            "EdDSA" => Some(Algorithm::EdDSA),
            _ => None,
        };
        for name in names.iter().filter(|name| of(name).is_none()) {
            self.errors
                .push(format!("{place}: {name:?} is none of the algorithms HS256, RS256, ES256, EdDSA"));
        }
        names.iter().filter_map(of).collect()
    }

    fn secret(&mut self, place: &str, path: &Path) -> Option<KeySource> {
        let text = self.file(place, path)?;
        let secret = text.trim().as_bytes().to_vec();
        if secret.len() < SHORTEST_SECRET {
            self.errors.push(format!("{place}: the secret must have at least {SHORTEST_SECRET} bytes"));
            return None;
        }
        Some(KeySource::Secret { fingerprint: fingerprint(&secret), secret })
    }

    fn jwks(&mut self, place: &str, jwks: String) -> Option<KeySource> {
        if jwks.starts_with("https://") || jwks.starts_with("http://") {
            if reqwest::Url::parse(&jwks).is_err() {
                self.errors.push(format!("{place}: jwks is no URL"));
                return None;
            }
            return Some(KeySource::Url(jwks));
        }
        let text = self.file(place, Path::new(&jwks))?;
        match crate::jwks::parse(text.as_bytes()) {
            Ok(keys) => Some(KeySource::File(keys)),
            Err(error) => {
                self.errors.push(format!("{place}: {jwks}: {error}"));
                None
            }
        }
    }

    /// A file that the configuration names, from the configuration's directory.
    fn file(&mut self, place: &str, path: &Path) -> Option<String> {
        match read(&self.dir.join(path)) {
            Ok(text) => {
                self.read.push(text.clone());
                Some(text)
            }
            Err(error) => {
                self.errors.push(format!("{place}: {error}"));
                None
            }
        }
    }
}

/// The fingerprint of all that decides what a token of this issuer is good for, but its keys.
fn reading(mut issuer: toml::Table) -> String {
    for name in ["jwks", "secret_file", "leeway_seconds", "refresh_seconds"] {
        issuer.remove(name);
    }
    fingerprint(issuer.to_string().as_bytes())
}
