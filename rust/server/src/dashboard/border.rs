//! Who may ask from where: what keeps other pages from using the browser of somebody who may.
//!
//! Pure: headers in, a refusal or nothing out. Four things guard the dashboard. On a loopback address a
//! request names a host that is ours, so that a name that was bound anew to 127.0.0.1 reaches nothing.
//! A browser that says which page asks is held to it. A change needs a header that no other page can
//! send without asking first, and nobody answers that question. And a session's cookie counts only with
//! its key, which is kept where pages of other ports do not come: cookies know no ports.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Response, StatusCode, Uri};

use super::answer::Failure;
use crate::proxy::Reply;

/// The key of a session, or anything where there is none.
pub(super) const KEY: &str = "x-bursar-key";
/// What the page sends in its place before somebody signs in.
pub(super) const NO_KEY: &str = "-";
const COOKIE: &str = "bursar";
const COOKIE_BY_TLS: &str = "__Host-bursar";

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'none'; base-uri 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// Tells browsers what the page may not do, on every answer.
pub(super) fn harden(response: &mut Response<Reply>) {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

/// Where requests come in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Border<'a> {
    pub(super) is_loopback: bool,
    pub(super) has_tls: bool,
    pub(super) hosts: &'a [String],
}

impl Border<'_> {
    /// Refuses a host that is not ours: a name of somebody else's that leads here.
    pub(super) fn check_host(self, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        // From elsewhere it takes TLS: a name that is not the certificate's does not come this far.
        if !self.is_loopback {
            return Ok(());
        }
        let named = uri
            .authority()
            .map(Authority::as_str)
            .or_else(|| headers.get(header::HOST).and_then(|host| host.to_str().ok()));
        let host = without_port(named.unwrap_or_default());
        let is_ours = ["localhost", "[::1]"].contains(&host)
            || host.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback())
            || self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        if is_ours {
            return Ok(());
        }
        let message = "this name is not the dashboard's: use localhost, or name it in \
                       dashboard.hosts";
        Err(Failure::new(StatusCode::MISDIRECTED_REQUEST, "NOT_ALLOWED", message))
    }

    /// Refuses what another page asks.
    pub(super) fn check_page(self, headers: &HeaderMap, changes: bool) -> Result<(), Failure> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let site = text("sec-fetch-site");
        let is_own_site = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
        let scheme = if self.has_tls { "https" } else { "http" };
        let host = text("host").unwrap_or_default();
        // Behind a proxy that has TLS it is https all the same; the host is what tells pages apart.
        let is_ours = |origin: &str| {
            let rest = origin.strip_prefix("https://");
            let rest = rest.or_else(|| origin.strip_prefix("http://").filter(|_| scheme == "http"));
            rest == Some(host)
        };
        let is_own_origin = text("origin").is_none_or(is_ours);
        if !is_own_site || !is_own_origin || (changes && text(KEY).is_none()) {
            let message = format!("only the dashboard's own page may ask this; scripts send {KEY}");
            return Err(Failure::new(StatusCode::FORBIDDEN, "NOT_ALLOWED", &message));
        }
        Ok(())
    }

    /// The id of the session, if the request shows one.
    pub(super) fn session_of(self, headers: &HeaderMap) -> Option<&str> {
        let name = self.cookie();
        let cookies = headers.get_all(header::COOKIE).into_iter();
        let pairs = cookies.filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(';'));
        let mut found = pairs.filter_map(|pair| pair.trim().split_once('='));
        found.find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// What makes a browser keep the session; an empty id: what makes it forget.
    pub(super) fn cookie_of(self, id: &str, age_s: i64) -> String {
        let secure = if self.has_tls { "; Secure" } else { "" };
        let name = self.cookie();
        format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{secure}")
    }

    fn cookie(self) -> &'static str {
        if self.has_tls { COOKIE_BY_TLS } else { COOKIE }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[String] = &[];
    const PLAIN: Border<'static> = Border { is_loopback: true, has_tls: false, hosts: HOSTS };

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn on_loopback_only_our_names_are_answered() {
        let hosts = ["Page.example".to_owned()];
        let border = Border { hosts: &hosts, ..PLAIN };
        let uri = Uri::from_static("/");
        for (host, is_ours) in [
            ("localhost", true),
            ("localhost:7414", true),
            ("127.0.0.1:7414", true),
            ("127.9.9.9", true),
            ("[::1]:7414", true),
            ("page.example:443", true),
            ("evil.example", false),
            ("localhost.evil.example:7414", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            let checked = border.check_host(&uri, &headers(&[("host", host)]));
            assert_eq!(checked.is_ok(), is_ours, "{host}");
        }
        assert!(border.check_host(&uri, &HeaderMap::new()).is_err());
        let elsewhere = Border { is_loopback: false, ..border };
        assert!(elsewhere.check_host(&uri, &headers(&[("host", "any.example")])).is_ok());
        let absolute = Uri::from_static("http://evil.example/");
        let lies = headers(&[("host", "localhost")]);
        assert!(border.check_host(&absolute, &lies).is_err());
    }

    #[test]
    fn other_pages_are_refused() {
        let host = ("host", "localhost:7414");
        let key = (KEY, "-");
        for (list, changes, is_fine) in [
            (&[host][..], false, true),
            (&[host], true, false),
            (&[host, key], true, true),
            (&[host, key, ("origin", "http://localhost:7414")], true, true),
            (&[host, key, ("origin", "https://localhost:7414")], true, true),
            (&[host, key, ("origin", "http://localhost:9999")], true, false),
            (&[host, key, ("origin", "http://evil.example")], false, false),
            (&[host, key, ("origin", "null")], true, false),
            (&[host, key, ("sec-fetch-site", "cross-site")], false, false),
            (&[host, key, ("sec-fetch-site", "same-site")], true, false),
            (&[host, key, ("sec-fetch-site", "same-origin")], true, true),
        ] {
            let checked = PLAIN.check_page(&headers(list), changes);
            assert_eq!(checked.is_ok(), is_fine, "{list:?} {changes}");
        }
        let by_tls = Border { has_tls: true, ..PLAIN };
        let plain_page = headers(&[host, key, ("origin", "http://localhost:7414")]);
        assert!(by_tls.check_page(&plain_page, true).is_err());
    }

    #[test]
    fn a_session_is_found_among_cookies() {
        let shown = headers(&[("cookie", "a=b; bursar=0123; c"), ("cookie", "bursarx=9")]);
        assert_eq!(PLAIN.session_of(&shown), Some("0123"));
        let by_tls = Border { has_tls: true, ..PLAIN };
        assert_eq!(by_tls.session_of(&shown), None);
        assert!(
            by_tls.cookie_of("1", 5).starts_with("__Host-bursar=1; Path=/; HttpOnly; SameSite")
        );
        assert!(by_tls.cookie_of("1", 5).ends_with("; Secure"));
    }
}
