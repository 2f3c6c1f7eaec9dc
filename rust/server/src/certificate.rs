//! What a client's certificate says: the names in it, and until when.
//!
//! It was verified when its connection was made; that it still is, is asked for with each call. What
//! its names may do is decided in `access`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate as Parsed;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::tls::Tls;

/// A certificate that a client has shown.
#[derive(Debug)]
pub(crate) struct Certificate {
    names: Names,
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<Tls>,
    /// The authorities that have trusted it last.
    generation: AtomicU64,
}

/// Whom a certificate names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Of its subject alternative name.
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    /// Of its subject, where that has exactly one.
    pub(crate) common_name: Option<String>,
    pub(crate) expires_ms: i64,
}

impl Certificate {
    pub(crate) fn read(
        tls: Arc<Tls>,
        chain: Vec<CertificateDer<'static>>,
        generation: u64,
    ) -> io::Result<Certificate> {
        let first = chain.first().ok_or(io::ErrorKind::InvalidData)?;
        let names = Names::read(first)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        Ok(Certificate { names, chain, tls, generation: AtomicU64::new(generation) })
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Why it is good for nothing any more; `None`: it is good.
    pub(crate) fn ended(&self, now_ms: i64) -> Option<&'static str> {
        if now_ms >= self.names.expires_ms {
            return Some("has expired");
        }
        // Pairs with itself only: whoever reads an old number verifies once more.
        let seen = self.generation.load(Ordering::Relaxed);
        let Some(trusted) = self.tls.trust(&self.chain, seen, now_ms) else {
            return Some("is of an authority that is trusted no more");
        };
        self.generation.store(trusted, Ordering::Relaxed);
        None
    }
}

impl Names {
    fn read(certificate: &[u8]) -> Result<Names, x509_cert::der::Error> {
        let parsed = Parsed::from_der(certificate)?;
        let body = parsed.tbs_certificate();
        let expires = body.validity().not_after.to_unix_duration();
        let mut names = Names {
            expires_ms: i64::try_from(expires.as_millis()).unwrap_or(i64::MAX),
            ..Names::default()
        };
        let common = body.subject().iter().filter(|part| part.oid == COMMON_NAME);
        let common: Vec<_> = common.collect();
        if let [one] = common[..] {
            names.common_name = std::str::from_utf8(one.value.value()).ok().map(str::to_owned);
        }
        if let Some((_, alternatives)) = body.get_extension::<SubjectAltName>()? {
            for name in alternatives.0 {
                match name {
                    GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                    GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
                    _ => {}
                }
            }
        }
        Ok(names)
    }

    /// Its first name, for people.
    pub(crate) fn shown(&self) -> String {
        let first = self.uris.first().or(self.dns.first()).or(self.common_name.as_ref());
        first.map_or_else(|| "without a name".into(), |name| format!("of {name:.100?}"))
    }
}

/// The names in a certificate and until when it is good, in words.
pub(crate) fn names_of(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let read = || {
        let until = Parsed::from_der(certificate)?.tbs_certificate().validity().not_after;
        let until = until.to_date_time();
        Ok(format!("the certificate {}, good until {until}", Names::read(certificate)?.shown()))
    };
    read().map_err(|error: x509_cert::der::Error| format!("no certificate can be read: {error}"))
}
