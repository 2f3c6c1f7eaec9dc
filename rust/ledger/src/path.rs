//! Names of accounts, and the patterns that create them.

/// The deepest account: organisation, department, team … run.
pub const MAX_DEPTH: usize = 16;
/// The longest single name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Whether `path` is 1 to [`MAX_DEPTH`] names joined by `/`. A name starts with a letter or digit
/// and goes on with letters, digits and `._-`, up to [`MAX_NAME_BYTES`].
pub fn is_valid(path: &str) -> bool {
    if path.len() > MAX_DEPTH * (MAX_NAME_BYTES + 1) {
        return false;
    }
    let mut depth = 0;
    path.split('/').all(|name| {
        depth += 1;
        depth <= MAX_DEPTH && is_name(name)
    })
}

fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.len() <= MAX_NAME_BYTES
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The path of the parent account, if any.
pub fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

/// Of an account below a root, that account, or the one above it that is directly below the root.
pub fn below_root(path: &str) -> Option<&str> {
    let (root, rest) = path.split_once('/')?;
    let name = rest.split('/').next()?;
    Some(&path[..root.len() + 1 + name.len()])
}

/// Whether `path` is `ancestor` or lies below it.
pub fn is_within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Matches paths: `*` stands for one name, a final `**` for one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Checks the pattern; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Pattern> {
        let mut names = text.split('/').peekable();
        let mut depth = 0;
        while let Some(name) = names.next() {
            depth += 1;
            let wild = name == "*" || (name == "**" && names.peek().is_none());
            if depth > MAX_DEPTH || !(wild || is_name(name)) {
                return None;
            }
        }
        Some(Pattern(text.to_owned()))
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names exactly one account.
    pub fn is_literal(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether the path matches.
    pub fn matches(&self, path: &str) -> bool {
        let mut names = path.split('/');
        for part in self.0.split('/') {
            let Some(name) = names.next() else {
                return false;
            };
            match part {
                "**" => return true,
                "*" => {}
                _ if part == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_paths_are_told_from_valid_ones() {
        for good in ["acme", "acme/research/agent-7", "a.b/c_d", &["x"; 16].join("/")] {
            assert!(is_valid(good), "{good}");
        }
        let long = "x".repeat(65);
        let deep = ["x"; 17].join("/");
        for bad in ["", "/", "a/", "/a", "a//b", ".a", "-a", "a b", "ä", "a/*", &long, &deep] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn patterns_match_names_one_by_one() {
        let one = Pattern::parse("acme/*").expect("valid");
        assert!(one.matches("acme/x") && !one.matches("acme") && !one.matches("acme/x/y"));
        let many = Pattern::parse("acme/**").expect("valid");
        assert!(many.matches("acme/x/y/z") && many.matches("acme/x") && !many.matches("acme"));
        assert!(Pattern::parse("**/x").is_none() && Pattern::parse("a/b*").is_none());
    }

    #[test]
    fn within_respects_name_borders() {
        assert!(is_within("a/b", "a") && is_within("a", "a") && !is_within("ab", "a"));
    }
}
