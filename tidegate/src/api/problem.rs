//! What a gateway says when it refuses (RFC 9457), kept whole, and printed for people.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A problem document (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable identifier, such as `/problems/unknown-kind`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What went wrong, in general.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What went wrong this time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Everything else: `fields`, `known`, and whatever is added later.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

impl Problem {
    /// The last part of the type: `unknown-kind`.
    pub fn slug(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", if self.title.is_empty() { "The server refused" } else { &self.title })?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        write!(f, " ({} {})", self.status, self.slug())?;
        for (name, value) in &self.extra {
            match (name.as_str(), value) {
                ("instance", _) => {}
                ("fields", Value::Array(fields)) => {
                    for field in fields {
                        let part = |key: &str| field.get(key).and_then(Value::as_str).unwrap_or("?");
                        write!(f, "\n  {}: {}", part("field"), part("description"))?;
                    }
                }
                (_, Value::Array(items)) if items.iter().all(Value::is_string) => {
                    let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                    write!(f, "\n  {name}: {}", items.join(", "))?;
                }
                (_, Value::String(text)) => write!(f, "\n  {name}: {text}")?,
                _ => write!(f, "\n  {name}: {value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_printed_with_their_particulars() {
        let problem: Problem = serde_json::from_str(
            r#"{"type":"/problems/unknown-kind","title":"Unknown kind","status":400,"detail":"no worker offers \"x\"",
                "known":["csv-import","demo"],"fields":[{"field":"kind","description":"is unknown"}],"instance":"/r/1"}"#,
        )
        .unwrap();
        assert_eq!(
            problem.to_string(),
            "Unknown kind: no worker offers \"x\" (400 unknown-kind)\n  kind: is unknown\n  known: csv-import, demo"
        );
    }
}
