//! Which type a column may have, and what it may be called. Pure.
//!
//! A type is taken only if every value can be had back from it byte for byte: `00501`, `+1`, `1e3` and ` 7` stay
//! text. Empty values are NULL and fit every type.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// SQLite's longest useful name here, in bytes.
const MAX_NAME: usize = 63;

/// A column type of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Type {
    Integer,
    Real,
    Text,
}

impl Type {
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Integer => "INTEGER",
            Self::Real => "REAL",
            Self::Text => "TEXT",
        }
    }
}

/// What is known of a column's values.
#[derive(Clone, Debug)]
pub(super) struct Guess {
    seen: bool,
    integer: bool,
    real: bool,
    /// Whether a whole number was written `7`, and whether one was written `7.0`: a REAL cannot tell them apart.
    bare: bool,
    pointed: bool,
}

impl Default for Guess {
    fn default() -> Self {
        Self { seen: false, integer: true, real: true, bare: false, pointed: false }
    }
}

impl Guess {
    /// Takes one value into account.
    pub(super) fn see(&mut self, value: &str) {
        if value.is_empty() || (self.seen && !self.integer && !self.real) {
            return;
        }
        self.seen = true;
        self.integer = self.integer && integer(value).is_some();
        self.real = self.real && real(value).is_some();
        if self.real {
            let pointed = value.ends_with(".0");
            self.pointed |= pointed;
            self.bare |= !value.contains('.');
        }
    }

    /// The narrowest type that loses nothing.
    pub(super) fn decide(&self) -> Type {
        match self {
            Self { seen: false, .. } => Type::Text,
            Self { integer: true, .. } => Type::Integer,
            Self { real: true, bare, pointed, .. } if !(*bare && *pointed) => Type::Real,
            _ => Type::Text,
        }
    }
}

/// The integer that is written exactly so.
pub(super) fn integer(text: &str) -> Option<i64> {
    // Longer texts are no i64; checked first because values may be long.
    let number: i64 = (text.len() <= 20).then(|| text.parse().ok()).flatten()?;
    (number.to_string() == text).then_some(number)
}

/// The number that is written exactly so: the shortest decimal text that means it, whole numbers also with `.0`.
pub(super) fn real(text: &str) -> Option<f64> {
    let decimal = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
    if text.len() > 400 || !text.bytes().all(decimal) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    let shortest = number.to_string();
    // SQLite keeps whole reals as integers: a negative zero would come back positive.
    let kept = number != 0.0 || number.is_sign_positive();
    (kept && (shortest == text || text.strip_suffix(".0") == Some(&shortest))).then_some(number)
}

/// An SQL name made of `text`: letters, digits and `_`, not beginning with a digit; `fallback` if nothing is left.
pub(super) fn identifier(text: &str, fallback: &str) -> String {
    let mut name = String::new();
    for c in text.trim().chars() {
        if c.is_ascii_alphanumeric() || c == '_' {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('_') {
            name.push('_');
        }
        // Room for a prefix, a number against doubles, and `_rejects`.
        if name.len() >= MAX_NAME - 13 {
            break;
        }
    }
    let name = name.trim_end_matches('_');
    match name.bytes().next() {
        None => fallback.to_owned(),
        Some(b'0'..=b'9') => format!("_{name}"),
        Some(_) => name.to_owned(),
    }
}

/// Column names for a header: no two alike, which in SQL means but for case.
pub(super) fn columns(header: &[&str]) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(header.len());
    for (at, text) in header.iter().enumerate() {
        let name = identifier(text, &format!("column_{}", at + 1));
        let mut candidate = name.clone();
        let mut number = 2;
        while !taken.insert(candidate.to_ascii_lowercase()) {
            candidate = format!("{name}_{number}");
            number += 1;
        }
        names.push(candidate);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn infer(values: &[&str]) -> Type {
        let mut guess = Guess::default();
        for value in values {
            guess.see(value);
        }
        guess.decide()
    }

    #[test]
    fn types_lose_nothing() {
        for (values, expected) in [
            (&["1", "", "-20", "9223372036854775807"][..], Type::Integer),
            (&["00501", "10001"], Type::Text),
            (&["+1"], Type::Text),
            (&[" 1"], Type::Text),
            (&["-0"], Type::Text),
            (&["-0.0"], Type::Text),
            (&["9223372036854775808"], Type::Text),
            (&["9007199254740993", "0.5"], Type::Text),
            (&["40.922326", "-72.637078", "40"], Type::Real),
            (&["1.0", "2.5"], Type::Real),
            (&["20000000000000010.0"], Type::Real),
            (&["1.0", "2"], Type::Text),
            (&["1.50"], Type::Text),
            (&["1e3"], Type::Text),
            (&[".5"], Type::Text),
            (&["5."], Type::Text),
            (&["NaN"], Type::Text),
            (&["inf"], Type::Text),
            (&["0x10"], Type::Text),
            (&["1", "a", "2"], Type::Text),
            (&["", ""], Type::Text),
            (&[], Type::Text),
            (&["0"], Type::Integer),
            (&["0.0", "1.5"], Type::Real),
        ] {
            assert_eq!(infer(values), expected, "{values:?}");
        }
    }

    #[test]
    fn header_names_are_made_usable_and_distinct() {
        let header = ["zip code", "Zip-Code", "ZIP_CODE", "", "2nd", "größe", "zip_code_2", "select"];
        let names = columns(&header);
        assert_eq!(
            names,
            ["zip_code", "Zip_Code_2", "ZIP_CODE_3", "column_4", "_2nd", "gr_e", "zip_code_2_2", "select"]
        );
        assert!(identifier(&"x".repeat(500), "c").len() < MAX_NAME);
    }

    proptest! {
        #[test]
        fn what_is_taken_as_a_number_prints_back_the_same(text in "-?[0-9]{0,20}(\\.[0-9]{0,8})?") {
            if let Some(number) = integer(&text) { prop_assert_eq!(number.to_string(), text.clone()) }
            if let Some(number) = real(&text) {
                // Not `{number:.1}`, which tells all digits of the double that is nearest to 20000000000000010.0.
                let back = if text.ends_with(".0") { format!("{number}.0") } else { number.to_string() };
                prop_assert_eq!(back, text);
            }
        }

        #[test]
        fn any_integer_and_any_finite_number_is_recognised(i in any::<i64>(), f in any::<f64>()) {
            prop_assert_eq!(integer(&i.to_string()), Some(i));
            if f.is_finite() && f != 0.0 { prop_assert_eq!(real(&f.to_string()), Some(f)) }
        }

        #[test]
        fn column_names_never_collide(header in prop::collection::vec("[aA_ 2é]{0,4}", 1..12)) {
            let header: Vec<_> = header.iter().map(String::as_str).collect();
            let names: HashSet<_> = columns(&header).into_iter().map(|n| n.to_ascii_lowercase()).collect();
            prop_assert_eq!(names.len(), header.len());
        }
    }
}
