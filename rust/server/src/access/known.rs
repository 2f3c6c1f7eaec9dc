//! `[access]`: whom the configuration knows, by the Unix socket or by a certificate.

use serde::Deserialize;

use super::Role;
use crate::certificate::Names;
use crate::peer::{Local, is_in_cgroup};

/// Who may call without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Whoever reaches a listener, as an operator: the socket's mode is the guard.
    #[default]
    Open,
    /// By the Unix socket: root, the sidecar's own user, and whom the configuration names; else who
    /// has a certificate that it names.
    Enforce,
}

/// `[access]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessSection {
    pub(super) mode: Mode,
    pub(super) local: Vec<LocalRow>,
    #[serde(default)]
    pub(super) certificate: Vec<CertificateRow>,
}

/// Whoever calls by the Unix socket and is all of this.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LocalRow {
    uid: Option<u32>,
    gid: Option<u32>,
    /// The path of a control group, for the processes in it and in those below it.
    #[serde(default)]
    cgroup: Option<String>,
    pub(super) role: Role,
    /// Empty: all.
    pub(super) account: String,
}

/// Whoever shows a certificate that has this name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateRow {
    name: Known,
    pub(super) role: Role,
    /// Empty: all.
    pub(super) account: String,
}

/// Where a certificate has its name. One that stands elsewhere does not count: authorities check the
/// kinds of names differently.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    Uri(String),
    Dns(String),
    CommonName(String),
}

impl AccessSection {
    /// The first row that means a caller by the Unix socket. One who is trusted anyway is not meant by
    /// a group alone: root is in many.
    pub(super) fn local(&self, caller: &Local, is_trusted: bool) -> Option<&LocalRow> {
        self.local.iter().find(|row| {
            if is_trusted && row.uid.is_none() && row.cgroup.is_none() {
                return false;
            }
            let in_cgroup = |wanted: &String| {
                caller.cgroup.as_deref().is_some_and(|cgroup| is_in_cgroup(cgroup, wanted))
            };
            row.uid.is_none_or(|wanted| wanted == caller.uid)
                && row.gid.is_none_or(|wanted| caller.groups.contains(&wanted))
                && row.cgroup.as_ref().is_none_or(in_cgroup)
        })
    }

    /// The first row that means a certificate, and the name that it means it by.
    pub(super) fn certificate(&self, names: &Names) -> Option<(&CertificateRow, &str)> {
        self.certificate.iter().find_map(|row| {
            let (name, is_meant) = match &row.name {
                Known::Uri(name) => (name, names.uris.contains(name)),
                Known::Dns(name) => (name, names.dns.contains(name)),
                Known::CommonName(name) => (name, names.common_name.as_ref() == Some(name)),
            };
            is_meant.then_some((row, name.as_str()))
        })
    }

    /// Whether everybody has to show who they are.
    pub(crate) fn enforces(&self) -> bool {
        self.mode == Mode::Enforce
    }

    pub(super) fn knows_cgroups(&self) -> bool {
        self.local.iter().any(|row| row.cgroup.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(rows: &str) -> AccessSection {
        let text = format!(r#"{{"mode": "enforce", "local": [], {rows}}}"#);
        serde_json::from_str(&text).expect("a section")
    }

    #[test]
    fn a_name_counts_where_it_stands_only_and_exactly() {
        let section = section(
            r#""certificate": [
                {"name": {"uri": "spiffe://a/x"}, "role": "agent", "account": "uri"},
                {"name": {"dns": "x.a"}, "role": "agent", "account": "dns"},
                {"name": {"common_name": "x"}, "role": "agent", "account": "cn"}]"#,
        );
        let found = |uri: &str, dns: &str, common: &str| {
            let names = Names {
                uris: vec!["other".into(), uri.into()],
                dns: vec!["other".into(), dns.into()],
                common_name: Some(common.into()),
                expires_ms: 0,
            };
            section.certificate(&names).map(|(row, _)| row.account.clone()).unwrap_or_default()
        };
        assert_eq!(found("spiffe://a/x", "x.a", "x"), "uri", "the first row that fits");
        assert_eq!(found("", "x.a", "x"), "dns");
        assert_eq!(found("", "", "x"), "cn");
        assert_eq!(found("x.a", "spiffe://a/x", "x.a"), "");
        assert_eq!(found("spiffe://a/x/", "y.x.a", "X"), "");
        assert_eq!(found("spiffe://a/", "*.a", " x"), "");
    }

    #[test]
    fn a_row_means_who_is_all_of_it() {
        let text = r#"{"mode": "enforce", "local": [
            {"uid": 7, "gid": null, "cgroup": "/a.slice", "role": "agent", "account": ""}]}"#;
        let section: AccessSection = serde_json::from_str(text).expect("a section");
        let is_known = |uid, cgroup: Option<&str>| {
            section.local(&Local::new(uid, &[0], cgroup.map(Into::into)), false).is_some()
        };
        assert!(is_known(7, Some("/a.slice/b")));
        assert!(!is_known(8, Some("/a.slice/b")));
        assert!(!is_known(7, Some("/b")));
        assert!(!is_known(7, None));
    }

    #[test]
    fn a_group_takes_nothing_from_who_is_trusted_anyway() {
        let text = r#"{"mode": "enforce", "local": [
            {"uid": null, "gid": 44, "cgroup": null, "role": "agent", "account": ""},
            {"uid": null, "gid": 44, "cgroup": "/pod", "role": "observer", "account": ""},
            {"uid": 0, "gid": null, "cgroup": null, "role": "agent", "account": "root"}]}"#;
        let section: AccessSection = serde_json::from_str(text).expect("a section");
        let role = |uid, groups: &[u32], cgroup: Option<&str>, is_trusted| {
            let caller = Local::new(uid, groups, cgroup.map(Into::into));
            section.local(&caller, is_trusted).map(|row| row.role)
        };
        assert_eq!(role(7, &[7, 44], None, false), Some(Role::Agent));
        assert_eq!(role(7, &[7, 44], None, true), None);
        assert_eq!(
            role(7, &[7, 44], Some("/pod"), true),
            Some(Role::Observer),
            "a cgroup means it"
        );
        assert_eq!(role(0, &[0], None, true), Some(Role::Agent), "so does a row of its own");
    }
}
