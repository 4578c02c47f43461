//! Visitors who come by TLS 1.3, and the certificate that every proxy shows them.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::file;
use crate::load::{Requests, Seen};

/// How many visitors share a connection of HTTP/2.
const SHARE: usize = 8;

/// Writes a certificate for every host, and its key.
pub(crate) fn certificate(directory: &Path) -> anyhow::Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let parameters = rcgen::CertificateParams::new(vec!["*.shop.example.com".to_owned()])?;
    let certificate = parameters.self_signed(&key)?;
    std::fs::write(file(directory, "tls.crt"), certificate.pem())?;
    std::fs::write(file(directory, "tls.key"), key.serialize_pem())?;
    std::fs::write(file(directory, "tls.pem"), certificate.pem() + &key.serialize_pem())?;
    Ok(())
}

/// What a visitor needs to come by TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    host: ServerName<'static>,
    request: Request<()>,
    /// The connections of HTTP/2, each for [`SHARE`] visitors.
    shared: Rc<[OnceCell<SendRequest<Bytes>>]>,
}

impl Tls {
    /// For `visitors` of `host` who ask for `path`, by this version of HTTP.
    pub(crate) fn new(
        directory: &Path,
        version: Version,
        host: &str,
        path: &str,
        visitors: usize,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file(directory, "tls.crt"))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![if version == Version::HTTP_2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let request = Request::get(format!("https://{host}{path}"));
        let request = request.header("user-agent", "bench/1").header("accept", "*/*").body(())?;
        let shared = (0..visitors.div_ceil(SHARE)).map(|_| OnceCell::new()).collect();
        let host = ServerName::try_from(host.to_owned())?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), host, request, shared })
    }

    /// A connection.
    pub(crate) async fn connect(&self, stream: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.host.clone(), stream).await.context("no TLS")
    }

    /// One visitor of HTTP/2, who asks as fast as he is answered.
    pub(crate) async fn visit(&self, requests: &Requests, number: usize, seen: &Seen) -> anyhow::Result<()> {
        let open = async || {
            let stream = TcpStream::connect(requests.address).await?;
            stream.set_nodelay(true)?;
            let stream = self.connect(stream).await?;
            anyhow::ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "HTTP/2 is not spoken");
            let (send, connection) = h2::client::handshake(stream).await?;
            tokio::task::spawn_local(async move { _ = connection.await });
            Ok(send)
        };
        let send = self.shared[number / SHARE].get_or_try_init(open).await?;
        while !seen.is_over() {
            let begun = Instant::now();
            let (response, _) = send.clone().ready().await?.send_request(self.request.clone(), true)?;
            let response = response.await?;
            anyhow::ensure!(response.status() == requests.status, "an answer of {}", response.status());
            let mut body = response.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                seen.received(data.len());
                body.flow_control().release_capacity(data.len())?;
            }
            seen.answered(begun.elapsed());
        }
        Ok(())
    }
}
