//! TLS of the listeners: the sidecar's certificate, the authorities of its clients' certificates, and
//! their exchange while the daemon runs.
//!
//! Owns the three files. What was read of them stays in use until all of them are whole again: a file
//! that is broken, or does not belong to the other, changes nothing and is told of. Sessions are not
//! resumed, so that every connection has shown what it is known by. Who may do what is decided in
//! `access`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificate::{Certificate, names_of};
use crate::config::ConfigError;

/// The longest that a file may be.
const FILE_BYTES: u64 = 1 << 20;
/// How long a client may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many looks in a row have to find the same fault before it is told: certificate and key are
/// replaced one after the other.
const PATIENCE: u32 = 2;

/// `[server.tls]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What is spoken inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inside {
    Http2,
    Http1,
}

/// The certificate of the listeners, and whose clients they trust.
#[derive(Debug)]
pub(crate) struct Tls {
    section: TlsSection,
    current: RwLock<Arc<Material>>,
    /// What was wrong at the last looks, and how many of them.
    fault: Mutex<(String, u32)>,
}

/// What one look at the files has found.
struct Material {
    /// Of what the files hold.
    digest: Vec<u8>,
    /// Rises with each exchange.
    generation: u64,
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    about: String,
}

impl fmt::Debug for Material {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Material").field("about", &self.about).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn open(section: &TlsSection) -> Result<Arc<Tls>, ConfigError> {
        let material = Files::read(section).and_then(|files| files.parse(section, 0));
        let material =
            material.map_err(|fault| ConfigError::new(format!("server.tls: {fault}")))?;
        Ok(Arc::new(Tls {
            section: section.clone(),
            current: RwLock::new(Arc::new(material)),
            fault: Mutex::default(),
        }))
    }

    /// Looks whether the files have changed, and takes them over if they are whole. Returns what there
    /// is to tell.
    pub(crate) fn refresh(&self) -> Option<String> {
        let mut fault = self.fault.lock();
        let current = self.current();
        let found = Files::read(&self.section).and_then(|files| {
            let is_new = files.digest() != current.digest;
            is_new.then(|| files.parse(&self.section, current.generation + 1)).transpose()
        });
        match found {
            Ok(None) => *fault = <(String, u32)>::default(),
            Ok(Some(material)) => {
                *fault = <(String, u32)>::default();
                let told = format!("tls: new connections are shown {}", material.about);
                *self.current.write() = Arc::new(material);
                return Some(told);
            }
            Err(text) if text == fault.0 => fault.1 = fault.1.saturating_add(1),
            Err(text) => *fault = (text, 1),
        }
        (fault.1 == PATIENCE)
            .then(|| format!("tls: {}; what was read before stays in use", fault.0))
    }

    /// Takes a connection's handshake; returns it with the certificate that its client has shown.
    pub(crate) async fn accept(
        self: &Arc<Tls>,
        stream: TcpStream,
        inside: Inside,
    ) -> std::io::Result<(TlsStream<TcpStream>, Option<Arc<Certificate>>)> {
        let current = self.current();
        let config = match inside {
            Inside::Http2 => &current.http2,
            Inside::Http1 => &current.http1,
        };
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE, handshake).await??;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = chain.iter().map(|one| one.clone().into_owned()).collect();
        if chain.is_empty() {
            return Ok((stream, None));
        }
        let certificate = Certificate::read(Arc::clone(self), chain, current.generation)?;
        Ok((stream, Some(Arc::new(certificate))))
    }

    /// The generation of the authorities that trust a chain now, if they do. `seen`: the one that did.
    pub(crate) fn trust(
        &self,
        chain: &[CertificateDer<'static>],
        seen: u64,
        now_ms: i64,
    ) -> Option<u64> {
        let current = self.current();
        if current.generation == seen {
            return Some(seen);
        }
        let (first, rest) = chain.split_first()?;
        let now = Duration::from_millis(now_ms.unsigned_abs());
        let now = UnixTime::since_unix_epoch(now);
        current.verifier.as_ref()?.verify_client_cert(first, rest, now).ok()?;
        Some(current.generation)
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.read())
    }
}

/// What the files of a section hold, in words, or why they cannot be used.
pub fn describe(section_json: &str) -> Result<String, ConfigError> {
    let section: TlsSection =
        serde_json::from_str(section_json).map_err(|error| ConfigError::new(error.to_string()))?;
    Ok(Tls::open(&section)?.current().about.clone())
}

/// What the files hold.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(section: &TlsSection) -> Result<Files, String> {
        Ok(Files {
            certificate: read(&section.certificate, false)?,
            key: read(&section.key, true)?,
            client_ca: section.client_ca.as_ref().map(|path| read(path, false)).transpose()?,
        })
    }

    fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.certificate, &self.key, self.client_ca.as_ref().unwrap_or(&Vec::new())] {
            context.update(&part.len().to_ne_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    fn parse(&self, section: &TlsSection, generation: u64) -> Result<Material, String> {
        let chain = certificates(&section.certificate, &self.certificate)?;
        let about = names_of(&chain[0])
            .map_err(|error| format!("{}: {error}", section.certificate.display()))?;
        let key = || PrivateKeyDer::from_pem_slice(&self.key);
        let key = key().map_err(|_| {
            let path = section.key.display();
            format!("{path} has no private key in PEM that is not encrypted")
        })?;
        let verifier = match (&section.client_ca, &self.client_ca) {
            (Some(path), Some(bytes)) => Some(verifier(path, bytes)?),
            _ => None,
        };
        let config = |protocol: &[u8]| {
            let mut config = config(verifier.clone(), chain.clone(), key.clone_key())
                .map_err(|error| fault_of(section, &error))?;
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok::<_, String>(Arc::new(config))
        };
        let (http2, http1) = (config(b"h2")?, config(b"http/1.1")?);
        let digest = self.digest();
        Ok(Material { digest, generation, http2, http1, verifier, about })
    }
}

fn fault_of(section: &TlsSection, error: &rustls::Error) -> String {
    let (certificate, key) = (section.certificate.display(), section.key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("the key in {key} is not that of the certificate in {certificate}")
        }
        error => format!("{certificate} and {key} cannot be used: {error}"),
    }
}

fn config(
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Trusts the authorities in a file. Who has no certificate may show a token.
fn verifier(path: &Path, bytes: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for one in certificates(path, bytes)? {
        roots.add(one).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// At least one.
fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(format!("{} has no certificate in PEM", path.display())),
    }
}

/// A file, within its bounds; a secret one has to be its owner's alone.
fn read(path: &Path, is_secret: bool) -> Result<Vec<u8>, String> {
    let cannot = |error| format!("{} cannot be read: {error}", path.display());
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode() & 0o777;
    if is_secret && mode & 0o077 != 0 {
        let path = path.display();
        return Err(format!(
            "{path} has mode {mode:04o}, and others can read it: chmod 600 {path}"
        ));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(format!("{} is longer than {FILE_BYTES} bytes", path.display()));
    }
    Ok(bytes)
}
