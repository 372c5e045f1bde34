//! The gateway's part of the configuration file that all parts share.
//!
//! Keys that no part knows are refused; the sections of other parts are left to them.

use std::{fs, path::Path};

use serde::{Deserialize, de::IgnoredAny};

use crate::limits::LimitSettings;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1024 * 1024;

/// The file as all parts share it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Who may come in.
    #[serde(rename = "auth")]
    _auth: Option<IgnoredAny>,
    limits: Option<toml::Table>,
    /// The workers' part.
    #[serde(rename = "exec")]
    _exec: Option<IgnoredAny>,
}

/// The limits that the file sets, if it sets any.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn limits(path: &Path) -> Result<Option<LimitSettings>, Vec<String>> {
    let name = path.display();
    let fail = |error: &dyn std::fmt::Display| vec![format!("{name}: {error}")];
    if fs::metadata(path).map_err(|e| fail(&e))?.len() > LARGEST {
        return Err(fail(&format!("is larger than {LARGEST} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|e| fail(&e))?;
    let file: File = toml::from_str(&text).map_err(|e| fail(&e.to_string().trim_end()))?;
    let errors = |found: Vec<String>| found.into_iter().map(|error| format!("{name}: {error}")).collect();
    file.limits.map(LimitSettings::read).transpose().map_err(errors)
}
