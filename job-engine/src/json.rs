//! What the engine takes for JSON, from submitters and workers alike.

use tidegate_proto::limits;

/// Refuses what is not JSON, or nested so deeply that common readers would choke on it.
pub fn check_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| format!("is not JSON: {e}"))?;
    match limits::json_depth(text) {
        depth if depth > limits::MAX_JSON_DEPTH => {
            Err(format!("is nested {depth} levels deep, more than {}", limits::MAX_JSON_DEPTH))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_readers_would_choke_on_is_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_json(&nested(64)).is_ok());
        assert!(check_json(&nested(65)).is_err_and(|what| what.contains("65")));
    }
}
