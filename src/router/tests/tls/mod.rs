//! Visitors who come by TLS, and what those who do not are told of it.

mod counts;

use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::tls::testing::{Made, certificate};
use super::super::{Certificate, Certificates, Challenge, Https, Timeouts};
use super::*;

const OTHER: &str = "api-main.shop.example.com";
const ELSEWHERE: &str = "elsewhere.example";

/// A router with both of its doors.
pub(super) struct Doors {
    pub(super) front: Front,
    secure: SocketAddr,
}

impl Doors {
    async fn start(config: RouterConfig, routes: Vec<Route>) -> Self {
        let (router, handle) = Router::with_source(config, Source::Given(std::sync::Mutex::new(routes)));
        handle.reload().await.unwrap();
        let (http, https) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (address, secure) = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(router.run(Listeners { http: vec![http], https: vec![https] }, shutdown.clone()));
        Self { front: Front { address, handle, shutdown, running }, secure }
    }

    /// One with a service that echoes and a certificate for its host.
    pub(super) async fn echo(config: RouterConfig) -> (Self, Visit, Service) {
        let service = Service::echo().await;
        let doors = Self::start(config, service.route(1)).await;
        let made = certificate(&[HOST]);
        doors.show(&[&made]);
        let visit = Visit::trusting(&[&made]);
        (doors, visit, service)
    }

    fn show(&self, made: &[&Made]) {
        let read = |made: &&Made| Arc::new(Certificate::read(made.chain.as_bytes(), made.key.as_bytes()).unwrap());
        self.front.handle.show(Certificates::new(made.iter().map(read), jiff::Timestamp::now()));
    }
}

/// A program that visits by TLS.
pub(super) struct Visit(ClientConfig);

impl Visit {
    fn trusting(made: &[&Made]) -> Self {
        Self::speaking(made, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    fn speaking(made: &[&Made], versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        for made in made {
            roots.add(CertificateDer::from_pem_slice(made.chain.as_bytes()).unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Self(config.with_root_certificates(roots).with_no_client_auth())
    }

    pub(super) fn offering(mut self, protocols: &[&str]) -> Self {
        self.0.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    fn without_name(mut self) -> Self {
        self.0.enable_sni = false;
        self
    }

    pub(super) async fn try_connect(&self, doors: &Doors, host: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
        self.try_connect_behind(doors, host, b"").await
    }

    /// By way of a proxy that first sends `header`.
    async fn try_connect_behind(
        &self,
        doors: &Doors,
        host: &'static str,
        header: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(doors.secure).await.unwrap();
        stream.write_all(header).await.unwrap();
        let connector = TlsConnector::from(Arc::new(self.0.clone()));
        patiently(connector.connect(ServerName::try_from(host).unwrap(), stream)).await
    }

    pub(super) async fn connect(&self, doors: &Doors, host: &'static str) -> Secure {
        Secure(self.try_connect(doors, host).await.unwrap())
    }

    pub(super) async fn connect_behind(&self, doors: &Doors, host: &'static str, header: &[u8]) -> Secure {
        Secure(self.try_connect_behind(doors, host, header).await.unwrap())
    }

    async fn alert(&self, doors: &Doors, host: &'static str) -> AlertDescription {
        let refused = self.try_connect(doors, host).await.unwrap_err();
        match refused.get_ref().and_then(|err| err.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            _ => panic!("{refused:?}"),
        }
    }
}

pub(super) struct Secure(TlsStream<TcpStream>);

impl Secure {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(patiently(self.0.read_u8()).await.unwrap());
        }
        let mut answer = Answer::parse(&head);
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            patiently(self.0.read_exact(&mut answer.body)).await.unwrap();
        }
        answer
    }

    pub(super) async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        self.answer().await
    }
}

#[tokio::test]
async fn both_versions_are_spoken_and_services_are_told_of_it() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (doors, _, _service) = Doors::echo(RouterConfig::default()).await;
        let made = certificate(&[HOST]);
        doors.show(&[&made]);
        let visit = Visit::speaking(&[&made], &[version]).offering(&["spdy/3", "http/1.1"]);
        let mut connection = visit.connect(&doors, HOST).await;
        assert_eq!(connection.0.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        for _ in 0..3 {
            let answer = connection.get(HOST, "/").await;
            assert_eq!(answer.status, 200);
            let told = answer.text();
            assert!(told.contains("x-forwarded-proto: https\r\n") && told.contains(";proto=https\r\n"), "{told}");
            assert!(told.contains(&format!("x-forwarded-port: {}\r\n", doors.secure.port())), "{told}");
        }
        let plain = doors.front.get("/", "").await;
        assert!(plain.text().contains("x-forwarded-proto: http\r\n"), "{plain:?}");
    }
}

#[tokio::test]
async fn a_host_without_certificate_is_refused_by_an_alert_that_says_so() {
    let (doors, visit, _service) = Doors::echo(RouterConfig::default()).await;
    assert_eq!(visit.alert(&doors, ELSEWHERE).await, AlertDescription::UnrecognisedName);
    let nameless = Visit(visit.0.clone()).without_name();
    assert_eq!(nameless.alert(&doors, HOST).await, AlertDescription::MissingExtension);
    let outdated = Visit(visit.0.clone()).offering(&["spdy/3"]);
    assert_eq!(outdated.alert(&doors, HOST).await, AlertDescription::NoApplicationProtocol);
    assert_eq!(visit.connect(&doors, HOST).await.get(HOST, "/").await.status, 200);
}

#[tokio::test]
async fn a_connection_serves_the_hosts_its_certificate_covers_and_no_other() {
    let service = Service::echo().await;
    let mut routes = service.route(1);
    for host in [OTHER, ELSEWHERE] {
        routes.push(Route { host: host.parse().unwrap(), ..routes[0].clone() });
    }
    let doors = Doors::start(RouterConfig::default(), routes).await;
    let (wildcard, single) = (certificate(&["*.shop.example.com"]), certificate(&[ELSEWHERE]));
    doors.show(&[&wildcard, &single]);
    let mut connection = Visit::trusting(&[&wildcard, &single]).connect(&doors, HOST).await;
    for (host, status) in [(HOST, 200), (ELSEWHERE, 421), (OTHER, 200), ("unknown.example", 421), (HOST, 200)] {
        assert_eq!(connection.get(host, "/").await.status, status, "{host}");
    }
}

#[tokio::test]
async fn a_session_is_resumed() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let service = Service::echo().await;
        let doors = Doors::start(RouterConfig::default(), service.route(1)).await;
        let made = certificate(&[HOST]);
        doors.show(&[&made]);
        let visit = Visit::speaking(&[&made], &[version]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut connection = visit.connect(&doors, HOST).await;
            assert_eq!(connection.get(HOST, "/").await.status, 200);
            assert_eq!(connection.0.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
        }
    }
}

#[tokio::test]
async fn who_never_finishes_a_handshake_is_let_go() {
    let timeouts = Timeouts { handshake: Duration::from_millis(300), ..Timeouts::default() };
    let (doors, visit, _service) = Doors::echo(RouterConfig { timeouts, ..RouterConfig::default() }).await;
    let mut silent = Raw(TcpStream::connect(doors.secure).await.unwrap());
    let mut halting = Raw(TcpStream::connect(doors.secure).await.unwrap());
    halting.send([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
    assert_eq!(visit.connect(&doors, HOST).await.get(HOST, "/").await.status, 200);
    assert_eq!(silent.rest_bytes().await, b"");
    assert_eq!(halting.rest_bytes().await, b"");
    doors.front.stop().await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so_and_let_go() {
    let (doors, _, _service) = Doors::echo(RouterConfig::default()).await;
    let mut plain = Raw(TcpStream::connect(doors.secure).await.unwrap());
    plain.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let said = plain.rest_bytes().await;
    assert_eq!((said.first(), said.get(5)), (Some(&21), Some(&2)), "a fatal alert: {said:?}");
}

#[tokio::test]
async fn a_connection_that_idled_is_taken_up_again() {
    let timeouts = Timeouts { park: Duration::from_millis(1), ..Timeouts::default() };
    let (doors, visit, _service) = Doors::echo(RouterConfig { timeouts, ..RouterConfig::default() }).await;
    let mut connection = visit.connect(&doors, HOST).await;
    for _ in 0..3 {
        assert_eq!(connection.get(HOST, "/").await.status, 200);
        // Not a wait for something: after that time it is parked, and before it is not.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn an_answer_of_many_records_arrives_whole_and_so_does_an_upload() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let sent = Bytes::from(body.clone());
    let service = Service::http(move |request| {
        let sent = sent.clone();
        async move {
            let received = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            assert!(received.is_empty() || received == sent);
            text(sent)
        }
    })
    .await;
    let doors = Doors::start(RouterConfig::default(), service.route(1)).await;
    let made = certificate(&[HOST]);
    doors.show(&[&made]);
    let mut connection = Visit::trusting(&[&made]).connect(&doors, HOST).await;
    assert!(connection.get(HOST, "/").await.body == body);
    connection.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    connection.send(&body).await;
    assert!(connection.answer().await.body == body);
}

#[tokio::test]
async fn a_connection_that_switches_protocols_is_joined_with_the_service() {
    let service = Service::raw(|mut stream, _| async move {
        reply(&mut stream, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rot\r\n\r\n").await;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        word.reverse();
        stream.write_all(&word).await.unwrap();
    })
    .await;
    let doors = Doors::start(RouterConfig::default(), service.route(1)).await;
    let made = certificate(&[HOST]);
    doors.show(&[&made]);
    let mut connection = Visit::trusting(&[&made]).connect(&doors, HOST).await;
    connection.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: rot\r\n\r\n")).await;
    assert_eq!(connection.answer().await.status, 101);
    connection.send("abcd").await;
    let mut word = [0; 4];
    patiently(connection.0.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"dcba");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_open_ones_stay() {
    let (doors, _, _service) = Doors::echo(RouterConfig::default()).await;
    let made = certificate(&[HOST]);
    doors.show(&[&made]);
    let mut open = Visit::trusting(&[&made]).connect(&doors, HOST).await;
    let renewed = certificate(&[HOST]);
    doors.show(&[&renewed]);
    assert_eq!(open.get(HOST, "/").await.status, 200);
    // Another visitor: this one would resume his session, in which no certificate is shown.
    let another = Visit::trusting(&[&made]);
    assert!(another.try_connect(&doors, HOST).await.is_err(), "the old certificate is not shown any more");
    assert_eq!(Visit::trusting(&[&renewed]).connect(&doors, HOST).await.get(HOST, "/").await.status, 200);
}

#[tokio::test]
async fn plain_http_leads_to_https_where_the_host_has_a_certificate() {
    let https = Https { redirect_to: Some(8443), hsts: None };
    let (doors, _, _service) = Doors::echo(RouterConfig { https, ..RouterConfig::default() }).await;
    for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308), ("PUT", 308), ("OPTIONS", 308)] {
        let answer = doors.front.ask(method, "/a%20b?c=d", "").await;
        assert_eq!(answer.status, status, "{method}");
        assert_eq!(answer.header("location"), Some(&*format!("https://{HOST}:8443/a%20b?c=d")));
    }
    doors.show(&[]);
    assert_eq!(doors.front.get("/", "").await.status, 200, "without certificate, visitors stay");
}

#[tokio::test]
async fn a_certificate_authority_finds_the_answer_to_http_01_and_services_keep_their_own() {
    let https = Https { redirect_to: Some(443), hsts: None };
    let (doors, _, _service) = Doors::echo(RouterConfig { https, ..RouterConfig::default() }).await;
    let path = "/.well-known/acme-challenge/token-1";
    let passed = doors.front.get(path, "").await;
    assert!(passed.text().starts_with(&format!("GET {path} ")), "a service may be asked by an authority of its own");
    let challenge = Challenge::Http { token: "token-1".to_owned(), answer: "token-1.thumb".to_owned() };
    let offer = doors.front.handle.offer(&HOST.parse().unwrap(), challenge);
    let answered = doors.front.get(path, "").await;
    assert_eq!((answered.status, answered.text()), (200, "token-1.thumb"));
    drop(offer);
    assert_ne!(doors.front.get(path, "").await.text(), "token-1.thumb");
}

#[tokio::test]
async fn a_certificate_authority_is_shown_the_answer_to_tls_alpn_01_and_visitors_are_not() {
    let (doors, visit, _service) = Doors::echo(RouterConfig::default()).await;
    let proof = certificate(&[HOST]);
    let authority = || Visit::trusting(&[&proof]).offering(&["acme-tls/1"]);
    assert_eq!(authority().alert(&doors, HOST).await, AlertDescription::AccessDenied);
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(proof.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(proof.chain.as_bytes()).unwrap()];
    let shown = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
    let offer = doors.front.handle.offer(&HOST.parse().unwrap(), Challenge::Alpn(shown));
    let mut connection = authority().connect(&doors, HOST).await;
    assert_eq!(connection.0.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    let mut rest = Vec::new();
    assert_eq!(patiently(connection.0.read_to_end(&mut rest)).await.unwrap(), 0, "there is nothing more to say");
    assert_eq!(visit.connect(&doors, HOST).await.get(HOST, "/").await.status, 200);
    drop(offer);
    assert_eq!(authority().alert(&doors, HOST).await, AlertDescription::AccessDenied);
}

#[tokio::test]
async fn browsers_are_told_to_come_by_tls_if_the_operator_wants_it() {
    let service = Service::http(|request| async move {
        let mut response = text("hello");
        if request.uri().path() == "/own" {
            let own = http::HeaderValue::from_static("max-age=0");
            response.headers_mut().insert(http::header::STRICT_TRANSPORT_SECURITY, own);
        }
        response
    })
    .await;
    let https = Https { redirect_to: None, hsts: Some(Duration::from_secs(86_400)) };
    let doors = Doors::start(RouterConfig { https, ..RouterConfig::default() }, service.route(1)).await;
    let made = certificate(&[HOST]);
    doors.show(&[&made]);
    let mut connection = Visit::trusting(&[&made]).connect(&doors, HOST).await;
    let told = |answer: &Answer| answer.header("strict-transport-security").map(str::to_owned);
    assert_eq!(told(&connection.get(HOST, "/").await).as_deref(), Some("max-age=86400"));
    assert_eq!(told(&connection.get(HOST, "/own").await).as_deref(), Some("max-age=0"));
    assert_eq!(told(&doors.front.get("/", "").await), None, "it counts only within TLS (RFC 6797, section 7.2)");
}
