//! Bytes to and from a server: TCP, TLS, Unix sockets.
//!
//! The client library can connect over TLS, but it always loads the certificates that this system trusts, even if
//! others are named, and fails if one of them can't be read. It also uses the process's default cryptography provider.
//! There is no default if several are compiled in, as here (`ring` for the stores, `aws-lc-rs` for the collector).
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use futures_util::future::select_ok;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::config::{RedisConfig, RedisNode};
use crate::store::StoreError;

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How connections are made.
#[derive(Debug)]
pub(super) struct Dialer {
    tls: Option<Tls>,
}

impl Dialer {
    /// Reads the certificates once, so that a mistake is reported at start.
    ///
    /// # Errors
    ///
    /// When a file can't be read or has no usable content. The message names its variable.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, StoreError> {
        let tls = config.url.as_ref().is_some_and(|url| url.tls).then(|| Tls::new(config));
        if let Some(tls) = &tls {
            tls.read()?;
        }
        Ok(Self { tls })
    }

    /// Whether connections are encrypted.
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects to all addresses of the host at once and takes the first that answers.
    pub(super) async fn tcp(&self, node: &RedisNode) -> Result<Box<dyn Stream>, StoreError> {
        let failed = |error: io::Error| StoreError::caused(&format!("REDIS_URL: cannot connect to {node}"), error);
        let addresses: Vec<_> = lookup_host((&*node.host, node.port)).await.map_err(failed)?.collect();
        if addresses.is_empty() {
            return Err(failed(io::Error::other("the name has no address")));
        }
        let attempts = addresses.into_iter().map(|address| Box::pin(TcpStream::connect(address)));
        let (stream, _) = select_ok(attempts).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(node.host.clone())
            .map_err(|_| failed(io::Error::other("no name that a certificate could be for")))?;
        let connector = TlsConnector::from(Arc::new(tls.read()?));
        let failed = |error| StoreError::caused(&format!("REDIS_URL: no TLS with {node}"), error);
        Ok(Box::new(connector.connect(name, stream).await.map_err(failed)?))
    }
}

/// Connects to a socket of this machine.
pub(super) async fn unix(path: &Path) -> Result<Box<dyn Stream>, StoreError> {
    let failed = |error| StoreError::caused(&format!("REDIS_URL: cannot connect to {}", path.display()), error);
    Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?))
}

/// The files that TLS uses. They are read for each new connection, so renewed certificates need no restart. An open
/// connection keeps the old ones.
#[derive(Debug)]
struct Tls {
    ca_file: Option<PathBuf>,
    /// Certificate and key.
    client: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    fn new(config: &RedisConfig) -> Self {
        Self { ca_file: config.ca_file.clone(), client: config.cert_file.clone().zip(config.key_file.clone()) }
    }

    fn read(&self) -> Result<ClientConfig, StoreError> {
        let roots = match &self.ca_file {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("REDIS_CA_FILE", path)? {
                    roots.add(certificate).map_err(unusable("REDIS_CA_FILE", path))?;
                }
                roots
            }
            None => trusted_by_this_system()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| StoreError::caused("TLS", error))?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("REDIS_CERT_FILE", certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(unusable("REDIS_KEY_FILE", key))?;
        builder.with_client_auth_cert(chain, key).map_err(unusable("REDIS_CERT_FILE", certificate))
    }
}

fn certificates(variable: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(unusable(variable, path))?;
    if found.is_empty() {
        return Err(StoreError::new(format!("{variable}: {} holds no certificate", path.display())));
    }
    Ok(found)
}

/// The system's certificates are read once, because there are more than a hundred. A private authority is named in
/// `REDIS_CA_FILE` instead.
fn trusted_by_this_system() -> Result<RootCertStore, StoreError> {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    });
    if roots.is_empty() {
        return Err(StoreError::new("REDIS_URL: this system trusts no authority; name one by REDIS_CA_FILE"));
    }
    Ok(roots.clone())
}

fn unusable<E: std::error::Error + Send + Sync + 'static>(variable: &str, path: &Path) -> impl Fn(E) -> StoreError {
    let what = format!("{variable}: {} cannot be used", path.display());
    move |error| StoreError::caused(&what, error)
}
