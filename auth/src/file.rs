//! The `[auth]` section of the configuration file: its shape, and what must hold in it.
//!
//! Unknown keys are refused; every entry's errors are told, not only the first. What is checked here reads no network.
//! Sections of other parts may stand in the same file and are left to them.

mod check;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};

use crate::{Scopes, issuer::IssuerSettings};
use check::Check;

/// The largest configuration file, key set or secret, in bytes.
const LARGEST: u64 = 1024 * 1024;
/// Everything that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Session cookies.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Whether there are any.
    pub enabled: bool,
    /// Whether the cookie is `Secure`; unset: unless the gateway listens on loopback.
    pub secure: Option<bool>,
    /// How long a session lasts, if its token does not end before.
    pub lifetime: Duration,
}

/// Tickets for event streams.
#[derive(Clone, Copy, Debug)]
pub struct TicketSettings {
    /// How long a ticket is good for a connect without a cursor.
    pub first_use: Duration,
    /// How long it is good for reconnects, if its token does not end before.
    pub lifetime: Duration,
}

impl Default for TicketSettings {
    fn default() -> Self {
        Self { first_use: Duration::from_secs(60), lifetime: Duration::from_secs(43_200) }
    }
}

/// What the file says, checked, with the files it names.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) issuers: Vec<IssuerSettings>,
    pub(crate) api_keys: Vec<ApiKey>,
    pub(crate) revoked: Vec<Revoked>,
    pub(crate) session: SessionSettings,
    pub(crate) tickets: TicketSettings,
    pub(crate) secret_file: Option<PathBuf>,
    /// How often all files are looked at again.
    pub(crate) reload: Duration,
    /// The hash of everything that was read.
    pub(crate) digest: [u8; 32],
}

impl Settings {
    /// Those of a file whose section has disappeared: nobody comes in.
    pub(crate) fn nobody() -> Self {
        Check { dir: Path::new(""), errors: Vec::new(), read: Vec::new() }.section(Section::default())
    }
}

/// A static key.
#[derive(Clone)]
pub(crate) struct ApiKey {
    pub(crate) sha256: [u8; 32],
    pub(crate) fingerprint: String,
    pub(crate) tenant: String,
    pub(crate) subject: String,
    pub(crate) scopes: Scopes,
    pub(crate) expires: Option<u64>,
}

/// Credentials that were taken back.
#[derive(Clone)]
pub(crate) struct Revoked {
    pub(crate) jti: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) tenant: Option<String>,
    /// Only those issued before, in seconds since 1970.
    pub(crate) before: Option<u64>,
}

/// The file as all parts share it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    auth: Option<Section>,
    /// The gateway's part.
    #[serde(rename = "limits")]
    _limits: Option<IgnoredAny>,
    /// The workers' part.
    #[serde(rename = "exec")]
    _exec: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    // Tables, so that every entry's errors can be told.
    #[serde(default)]
    issuer: Vec<toml::Table>,
    #[serde(default)]
    api_key: Vec<toml::Table>,
    #[serde(default)]
    revoked: Vec<toml::Table>,
    #[serde(default)]
    session: toml::Table,
    #[serde(default)]
    tickets: toml::Table,
    secret_file: Option<PathBuf>,
    reload_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuerEntry {
    issuer: String,
    audience: OneOrMany,
    algorithms: Vec<String>,
    jwks: Option<String>,
    secret_file: Option<PathBuf>,
    tenant: Option<String>,
    tenant_claim: Option<String>,
    #[serde(default = "sub")]
    subject_claim: String,
    #[serde(default)]
    subject_prefix: String,
    #[serde(default = "scope")]
    scopes_claim: String,
    #[serde(default)]
    grants: std::collections::HashMap<String, Vec<String>>,
    #[serde(default = "thirty")]
    leeway_seconds: u64,
    #[serde(default = "three_hundred")]
    refresh_seconds: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn sub() -> String {
    "sub".into()
}

fn scope() -> String {
    "scope".into()
}

fn thirty() -> u64 {
    30
}

fn three_hundred() -> u64 {
    300
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiKeyEntry {
    name: String,
    sha256: String,
    subject: String,
    #[serde(default = "default_tenant")]
    tenant: String,
    scopes: Vec<String>,
    expires: Option<toml::value::Datetime>,
}

fn default_tenant() -> String {
    "default".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokedEntry {
    jti: Option<String>,
    subject: Option<String>,
    tenant: Option<String>,
    before: Option<toml::value::Datetime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionEntry {
    enabled: Option<bool>,
    secure: Option<bool>,
    lifetime_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TicketsEntry {
    first_use_seconds: Option<u64>,
    lifetime_seconds: Option<u64>,
}

/// The settings of the file at `path`; none if it has no `[auth]` section.
pub(crate) fn load(path: &Path) -> Result<Option<Settings>, ConfigErrors> {
    let here = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let text = read(path).map_err(|error| ConfigErrors(vec![error]))?;
    let file: File =
        toml::from_str(&text).map_err(|error| ConfigErrors(vec![here(&error.to_string().trim_end())]))?;
    let Some(section) = file.auth else { return Ok(None) };
    let mut check =
        Check { dir: path.parent().unwrap_or(Path::new("")), errors: Vec::new(), read: vec![text] };
    let settings = check.section(section);
    if check.errors.is_empty() {
        Ok(Some(settings))
    } else {
        Err(ConfigErrors(check.errors.iter().map(|error| here(error)).collect()))
    }
}

/// The text of a file that must not be huge.
fn read(path: &Path) -> Result<String, String> {
    let failed = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > LARGEST {
        return Err(failed(&format!("is larger than {LARGEST} bytes")));
    }
    fs::read_to_string(path).map_err(|error| failed(&error))
}

/// Whether the engine takes it for a subject.
pub(crate) fn is_subject(subject: &str) -> bool {
    (1..=256).contains(&subject.len()) && !subject.chars().any(char::is_control)
}
