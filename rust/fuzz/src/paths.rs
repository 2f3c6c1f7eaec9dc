//! Names of accounts and patterns: nothing that is valid climbs, hides, or is in two places.

use bursar_ledger::path::{MAX_DEPTH, MAX_NAME_BYTES, Pattern, is_valid, is_within, parent};

/// Two texts, one to a line.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, other) = text.split_once('\n').unwrap_or((text, "acme/**"));
    if is_valid(path) {
        let names: Vec<&str> = path.split('/').collect();
        assert!(names.len() <= MAX_DEPTH);
        for name in names {
            assert!((1..=MAX_NAME_BYTES).contains(&name.len()) && !matches!(name, "." | ".."));
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
        }
        if let Some(parent) = parent(path) {
            assert!(is_valid(parent) && is_within(path, parent) && !is_within(parent, path));
        }
        let own = Pattern::parse(path).expect("a path is a pattern");
        assert!(own.is_literal() && own.matches(path));
        assert!(!own.matches(other) || other == path);
    }
    if let Some(pattern) = Pattern::parse(other) {
        assert_eq!(pattern.as_str(), other);
        assert_eq!(pattern.is_literal(), is_valid(other), "{other:?}");
        if pattern.matches(path) && pattern.is_literal() {
            assert_eq!(path, other);
        }
    }
    if is_within(path, other) && is_within(other, path) {
        assert_eq!(path, other);
    }
}
