//! Certificates by a real authority: ordered when a host goes live, renewed, kept while the authority is away.

use std::fs;
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::http::{request, send};
use crate::harness::leftovers::rows;
use crate::harness::pebble::{DIRECTORY, Pebble, version_by_tls, visit_by_tls};
use crate::harness::{App, Lab, LabConfig, ROUTER, Service, machine, split, until};

/// How long an order may take that nothing holds up, refused nonces included.
pub(crate) const ORDER_MAX: Duration = Duration::from_secs(60);
/// How long an order may take once its authority is back: it may have been asked a third time just before, which is
/// followed by a wait of up to 50 s, and it must then be told of the account, which is followed by one of up to 100 s.
const BACK_MAX: Duration = Duration::from_secs(150 + 60);

fn config(challenge: &str) -> LabConfig {
    let ca_file = Pebble::ca_file();
    let acme = format!(
        "[acme]\nemail = \"ops@lab.test\"\ndirectory = \"{DIRECTORY}\"\nca_file = \"{}\"\nchallenge = \"{challenge}\"",
        ca_file.display()
    );
    LabConfig::hello().router("https = \"127.0.0.1:8443\"").section(&acme)
}

fn root() -> String {
    fs::read_to_string(Pebble::root_file()).unwrap()
}

/// A copy of the authority's root as it is now: it has another one after it was stopped.
pub(crate) fn root_as(name: &str) -> String {
    let path = format!("/srv/pebble/{name}.pem");
    fs::write(&path, root()).unwrap();
    path
}

/// Waits until a host is served by TLS to those who trust this root.
pub(crate) async fn served(host: &str, root: &str) -> String {
    served_within(ORDER_MAX, host, root).await
}

async fn served_within(limit: Duration, host: &str, root: &str) -> String {
    let what = format!("{host} is served by TLS");
    until(&what, limit, async || visit_by_tls(host, "/", root).await.ok()).await
}

/// Waits until the only certificate is renewed. Every visitor in between is served by one that is valid.
pub(crate) async fn renewed_without_a_gap(host: &str, root: &str) {
    let ends = async || rows("select expires_at from certificates where expires_at is not null").await;
    let first = until("the certificate is noted", ORDER_MAX, async || ends().await.pop()).await;
    until("there is another certificate", Duration::from_secs(180), async || {
        visit_by_tls(host, "/", root).await.expect("there is a valid certificate at all times");
        (ends().await[0] > first).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_goes_live_gets_its_certificate_by_http_01_and_no_other_is_ordered() {
    let pebble = Pebble::start().await;
    let lab = Lab::start(config("http-01")).await;
    let live = lab.deploy("hello", "main", &App::api("one").site("web", "page")).await;
    let root = root_as("first");
    assert!(served(&live["api"].host, &root).await.contains("one"));
    assert_eq!(served(&live["web"].host, &root).await, "page");
    for (offer, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        assert_eq!(version_by_tls(&live["api"].host, &root, offer).await, version);
    }

    // Plain HTTP leads there, and a name that has no route gets no certificate.
    let moved = lab.visit(&live["api"].host, "/?a=b").await.expect(301);
    assert_eq!(moved.header("location"), format!("https://{}:8443/?a=b", live["api"].host));
    let refused = visit_by_tls("other-main.hello.lab.test", "/", &root).await.unwrap_err();
    assert!(refused.contains("alert unrecognized name") || refused.contains("unrecognized"), "{refused}");
    assert_eq!(rows("select count(*) from certificates").await, ["2"]);

    // It survives a restart, and is not ordered again.
    let ordered = pebble.said().await.matches("Issued certificate serial").count();
    lab.restart().await;
    assert!(visit_by_tls(&live["api"].host, "/", &root).await.unwrap().contains("one"));
    lab.deploy_api("hello", "topic", &App::api("two")).await;
    until("the new host has its certificate", ORDER_MAX, async || {
        (rows("select count(*) from certificates where expires_at is not null").await == ["3"]).then_some(())
    })
    .await;
    assert_eq!(pebble.said().await.matches("Issued certificate serial").count(), ordered + 1);

    let dir = split::own_dir().join("certificates").join(&live["api"].host);
    let modes = machine::ok("stat", &["-c", "%a %U", dir.to_str().unwrap()]).await;
    assert_eq!(modes.trim(), format!("700 {}", split::owner()));
    let modes = machine::ok("stat", &["-c", "%a %U", dir.join("certificate.pem").to_str().unwrap()]).await;
    assert_eq!(modes.trim(), format!("600 {}", split::owner()));
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_by_tls_alpn_01() {
    // Nothing answers where it would look for http-01.
    let pebble = Pebble::with(8099, 86_400).await;
    let lab = Lab::start(config("tls-alpn-01")).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let root = root_as("first");
    assert!(served(&live.host, &root).await.contains("one"));
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_authority_is_away_the_old_certificate_serves_and_the_next_comes_when_it_is_back() {
    let pebble = Pebble::start().await;
    let lab = Lab::start(config("http-01")).await;
    let old = lab.deploy_api("hello", "main", &App::api("one")).await;
    let first_root = root_as("first");
    served(&old.host, &first_root).await;

    pebble.stop().await;
    let new = lab.deploy_api("hello", "topic", &App::api("two")).await;
    until("kennel has found that the authority is away", ORDER_MAX, async || {
        (rows("select count(*) from acme_directories").await == ["1"]).then_some(())
    })
    .await;
    assert!(visit_by_tls(&old.host, "/", &first_root).await.unwrap().contains("one"));
    assert_eq!(rows("select failures from certificates").await, ["0", "0"], "it is no host's fault");

    // What was tried is not forgotten: a restart does not try before its time.
    let tries = async || rows("select failures || ' ' || try_at from acme_directories").await.concat();
    let tried = tries().await;
    lab.kill9().await;
    assert!(visit_by_tls(&old.host, "/", &first_root).await.unwrap().contains("one"));
    assert_eq!(lab.visit(&new.host, "/").await.status, 200, "without certificate it is served as it was");
    let after = tries().await;
    let failures = |said: &str| said.split(' ').next().unwrap().parse::<u32>().unwrap();
    assert!(after == tried || failures(&after) == failures(&tried) + 1, "{tried} became {after}");

    // It is back, and knows nothing of the account.
    pebble.resume().await;
    let second_root = root_as("second");
    assert!(served_within(BACK_MAX, &new.host, &second_root).await.contains("two"));
    assert!(visit_by_tls(&old.host, "/", &first_root).await.unwrap().contains("one"), "it is not due");
    until("it is noted that the authority is back", ORDER_MAX, async || {
        (rows("select count(*) from acme_directories").await == ["0"]).then_some(())
    })
    .await;
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_an_order_it_goes_on_with_the_same_one() {
    // What the authority asks for is held up here.
    let door = TcpListener::bind("127.0.0.1:8098").await.unwrap();
    let pebble = Pebble::with(8098, 86_400).await;
    let lab = Lab::start(config("http-01")).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let (asking, _) = tokio::time::timeout(ORDER_MAX, door.accept()).await.unwrap().unwrap();
    let order = rows("select order_url from certificates").await;
    assert!(order[0].starts_with("https://127.0.0.1:14000/"), "{order:?}");

    lab.kill9().await;

    assert_eq!(rows("select order_url from certificates").await, order, "it is known after the kill");
    // Whoever asks gets his answer once kennel has it: it is looked from three places.
    let through = async {
        let mut next = asking;
        loop {
            answer_for_kennel(next).await;
            next = door.accept().await.unwrap().0;
        }
    };
    let root = root_as("first");
    let page = tokio::select! {
        page = served(&live.host, &root) => page,
        () = through => unreachable!("it goes on for ever"),
    };
    assert!(page.contains("one"));
    let orders = pebble.said().await.matches("Added order").count();
    assert_eq!(orders, 1, "it made no other");
    pebble.stop().await;
    lab.finish().await;
}

/// Reads a request, and passes on kennel's answer as soon as that is not that there is none.
async fn answer_for_kennel(mut asking: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = asking.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let host = head.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap();
    let body = until("kennel answers the challenge again", Duration::from_secs(20), async || {
        let answer = send(ROUTER, request(Method::GET, host, path, "")).await.ok()?;
        (answer.status == 200 && answer.text().contains('.')).then(|| answer.text())
    })
    .await;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    asking.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_short_lived_is_renewed_before_it_ends() {
    let pebble = Pebble::with(8080, 120).await;
    let lab = Lab::start(config("http-01")).await;
    let live = lab.deploy_api("hello", "main", &App::default().with(Service::new("api", "one"))).await;
    let root = root_as("first");
    served(&live.host, &root).await;
    renewed_without_a_gap(&live.host, &root).await;
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_authority_cannot_see_is_said_and_not_tried_over_and_over() {
    let pebble = Pebble::with(8097, 86_400).await;
    let lab = Lab::start(config("http-01")).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let problem = until("the order has failed", ORDER_MAX, async || {
        rows("select problem from certificates where failures = 1").await.pop()
    })
    .await;
    assert!(problem.contains(&live.host) && problem.contains("connection refused"), "{problem}");
    let wait = rows("select (try_at - unixepoch() * 1000) / 1000 from certificates").await.remove(0);
    assert!(wait.parse::<i64>().unwrap() > 150, "{wait} s");
    lab.restart().await;
    assert_eq!(lab.visit(&live.host, "/").await.status, 200);
    assert_eq!(rows("select failures from certificates").await, ["1"]);
    let journal = lab.journal().await;
    assert!(journal.contains(&format!("No certificate for {}, trying again at", live.host)), "{journal}");
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_from_files_are_read_at_start_and_when_they_change() {
    let put = |names: &[&str]| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let made = params.unwrap().self_signed(&key).unwrap();
        // Not at once, as whoever renews them does it.
        fs::write("/srv/given/key.pem", key.serialize_pem()).unwrap();
        fs::write("/srv/given/fullchain.pem", made.pem()).unwrap();
    };
    let _ = fs::remove_dir_all("/srv/given");
    fs::create_dir_all("/srv/given").unwrap();
    put(&["*.hello.lab.test"]);
    let files =
        "[[tls.certificates]]\ncertificate_file = \"/srv/given/fullchain.pem\"\nkey_file = \"/srv/given/key.pem\"";
    let lab = Lab::start(LabConfig::hello().router("https = \"127.0.0.1:8443\"").section(files)).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let trusted = "/srv/given/fullchain.pem";
    assert!(visit_by_tls(&live.host, "/", trusted).await.unwrap().contains("one"));

    fs::write("/srv/given/fullchain.pem", "torn").unwrap();
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    until("kennel has said so", Duration::from_secs(40), async || {
        lab.journal().await.contains("cannot use `/srv/given/fullchain.pem`").then_some(())
    })
    .await;
    put(&[&live.host]);
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    until("the new certificate is shown", Duration::from_secs(40), async || {
        visit_by_tls(&live.host, "/", trusted).await.is_ok().then_some(())
    })
    .await;
    lab.finish().await;
}
