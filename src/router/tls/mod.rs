//! TLS in front of visitors: which certificate a connection is shown, and how long its handshake may take.
//!
//! The certificates are one immutable snapshot, swapped whole; connections that are open keep theirs.
//!
//! **Invariant:** a visitor who asks for a host without certificate is shown none: he gets an alert that says so.

mod certificate;
mod challenge;
mod counts;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

pub use self::certificate::{Certificate, CertificateError, Certificates};
pub(super) use self::challenge::Challenges;
pub use self::challenge::{Challenge, Offer};
pub(super) use self::counts::Counts;
use self::counts::Ended;

/// What is spoken within TLS, the most wanted first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];
/// HTTP/2's name within TLS (RFC 9113, section 3.2).
pub(super) const HTTP2: &[u8] = b"h2";

/// A fatal alert before anything is encrypted (RFC 8446, section 6): its record's head, level, and description.
const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

const MISSING_EXTENSION: [u8; 7] = alert(109);
const UNRECOGNIZED_NAME: [u8; 7] = alert(112);

/// What all handshakes share.
#[derive(Debug)]
pub(super) struct Front {
    certificates: Arc<Shelf>,
    /// What certificate authorities ask for.
    pub(super) challenges: Challenges,
    /// For visitors.
    visitors: Arc<ServerConfig>,
    /// For certificate authorities, who look at the certificate and go.
    authorities: Arc<ServerConfig>,
    counts: Arc<Counts>,
}

/// The snapshot.
#[derive(Debug, Default)]
struct Shelf(ArcSwap<Certificates>);

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = asked_for(hello.server_name())?;
        self.0.load().find(&host).map(|certificate| Arc::clone(certificate.key()))
    }
}

/// A connection's TLS, as far as its requests need to know.
#[derive(Debug)]
pub(super) struct Secured {
    /// What the visitor asked for by SNI.
    host: Box<str>,
    certificate: Arc<Certificate>,
}

impl Secured {
    /// Whether the certificate of this connection is good for `host` (RFC 9110, section 7.4).
    pub(super) fn covers(&self, host: &str) -> bool {
        *self.host == *host || self.certificate.covers(host)
    }
}

impl Front {
    /// A front without certificates.
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        let (certificates, challenges) = (Arc::new(Shelf::default()), Challenges::default());
        let resolver: Arc<dyn ResolvesServerCert> = certificates.clone();
        let visitors = config(resolver, &PROTOCOLS);
        let authorities = config(Arc::new(challenges.clone()), &[challenge::ALPN]);
        Self { certificates, challenges, visitors: Arc::new(visitors), authorities: Arc::new(authorities), counts }
    }

    /// From now on these are shown.
    pub(super) fn show(&self, certificates: Certificates) {
        self.counts.note_certificates(certificates.ends());
        self.certificates.0.store(Arc::new(certificates));
    }

    /// Whether there is a certificate for `host`.
    pub(super) fn covers(&self, host: &str) -> bool {
        self.find(host).is_some()
    }

    fn find(&self, host: &str) -> Option<Arc<Certificate>> {
        self.certificates.0.load().find(host).cloned()
    }

    /// Counts a handshake that failed; one without an error took too long.
    pub(super) fn note_failure(&self, failed: Option<&io::Error>) {
        self.counts.note(failed.map_or(Ended::TooSlow, Ended::of));
    }

    /// Makes a connection a secured one. `None` when it is over: refused, or a certificate authority's.
    pub(super) async fn greet<S>(&self, stream: S) -> io::Result<Option<(Box<TlsStream<S>>, Secured)>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let started = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = started.client_hello();
        let from_authority = hello.alpn().is_some_and(|mut offered| offered.any(|name| name == challenge::ALPN));
        let host = asked_for(hello.server_name());
        if from_authority {
            let mut stream = started.into_stream(Arc::clone(&self.authorities)).await?;
            self.counts.note(Ended::Proven);
            stream.shutdown().await?;
            return Ok(None);
        }
        let Some(host) = host else {
            self.counts.note(Ended::NoName);
            return refuse(started, MISSING_EXTENSION).await;
        };
        let Some(certificate) = self.find(&host) else {
            self.counts.note(Ended::UnknownName);
            return refuse(started, UNRECOGNIZED_NAME).await;
        };
        let stream = started.into_stream(Arc::clone(&self.visitors)).await?;
        self.counts.note(Ended::Done);
        Ok(Some((Box::new(stream), Secured { host: host.into(), certificate })))
    }
}

/// The name of a host as certificates are kept by it.
fn asked_for(server_name: Option<&str>) -> Option<String> {
    server_name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

async fn refuse<S, T>(started: StartHandshake<S>, alert: [u8; 7]) -> io::Result<Option<T>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let StartHandshake { mut io, .. } = started;
    io.write_all(&alert).await?;
    io.shutdown().await?;
    Ok(None)
}

fn config(certificates: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring has what both versions need")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // Sessions are resumed by tickets, which visitors keep: nothing is held here for those who do not come back.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().expect("the system has random numbers");
    config
}
