//! One certificate for all hosts of a project, by a real authority that looks into the DNS, and records beside it.

use http::Method;

use crate::certificates::{ORDER_MAX, renewed_without_a_gap, root_as, served};
use crate::harness::api;
use crate::harness::dns::{Zone, give_token};
use crate::harness::leftovers::rows;
use crate::harness::pebble::{DIRECTORY, Pebble, visit_by_tls};
use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, machine, until};

const PROOF: &str = "_acme-challenge.hello.lab.test";

/// An authority that finds nothing where it would look for http-01.
async fn authority(validity_secs: u32) -> Pebble {
    Pebble::with(8099, validity_secs).await
}

fn config(dns: &str) -> LabConfig {
    let ca_file = Pebble::ca_file();
    let acme =
        format!("[acme]\nemail = \"ops@lab.test\"\ndirectory = \"{DIRECTORY}\"\nca_file = \"{}\"", ca_file.display());
    LabConfig::hello().router("https = \"127.0.0.1:8443\"").section(&acme).section(dns)
}

async fn problem_says(part: &str) -> String {
    until("the order has failed", ORDER_MAX, async || {
        let said = rows("select problem from certificates where problem is not null").await.pop();
        said.filter(|said| said.contains(part))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wildcard_by_dns_01_serves_every_preview_of_a_project() {
    let pebble = authority(90 * 86_400).await;
    let zone = Zone::start("lab.test").await;
    let lab = Lab::start(config(&zone.section(""))).await;
    let main = lab.deploy("hello", "main", &App::api("one").site("web", "page")).await;
    let root = root_as("first");
    assert!(served(&main["api"].host, &root).await.contains("one"));
    assert_eq!(served(&main["web"].host, &root).await, "page");
    let topic = lab.deploy_api("hello", "topic", &App::api("two")).await;
    let page = visit_by_tls(&topic.host, "/", &root).await.expect("it has a certificate from its first moment on");
    assert!(page.contains("two"));
    assert_eq!(rows("select name from certificates").await, ["*.hello.lab.test"]);
    assert_eq!(pebble.said().await.matches("Issued certificate serial").count(), 1);
    until("the proof is gone", ORDER_MAX, async || zone.texts().is_empty().then_some(())).await;
    let made = zone.provider.asked().iter().filter(|asked| asked.starts_with("POST ")).count();
    assert_eq!(made, 1, "it proved it once");
    let counted = api::ask(Method::GET, "/metrics").await.expect(200).text();
    let ends = rows("select expires_at / 1000 from certificates").await.remove(0);
    let expiry = format!("kennel_certificate_expiry_timestamp_seconds{{name=\"*.hello.lab.test\"}} {ends}\n");
    assert!(counted.contains(&expiry), "{counted}");

    lab.restart().await;
    assert!(visit_by_tls(&topic.host, "/", &root).await.unwrap().contains("two"));
    assert_eq!(pebble.said().await.matches("Issued certificate serial").count(), 1);
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_said_and_a_better_one_is_taken_on_reload() {
    let pebble = authority(86_400).await;
    let zone = Zone::start("lab.test").await;
    give_token("revoked");
    let lab = Lab::start(config(&zone.section(""))).await;
    let problem = problem_says("refuses").await;
    assert_eq!(problem, "the DNS provider refuses the token of `dns.token_file`: Invalid access token (9109)");
    let wait = rows("select (try_at - unixepoch() * 1000) / 1000 from certificates").await.remove(0);
    assert!(wait.parse::<i64>().unwrap() > 150, "{wait} s");
    let journal = lab.journal().await;
    assert!(journal.contains("No certificate for *.hello.lab.test, trying again at"), "{journal}");
    assert!(!journal.contains("revoked"), "a token is no news");
    let status = machine::ok("kennel", &["status"]).await;
    let shown = format!("No new certificate for *.hello.lab.test\n    {problem}");
    assert!(status.contains("*.hello.lab.test  none yet  in ") && status.contains(&shown), "{status}");

    give_token("lab-token");
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    served(&live.host, &root_as("first")).await;
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_dns_provider_is_away_it_is_tried_again_by_itself() {
    let pebble = authority(86_400).await;
    let zone = Zone::start("lab.test").await;
    zone.provider.say(503, None);
    let lab = Lab::start(config(&zone.section(""))).await;
    problem_says("status 503").await;
    zone.provider.say(429, Some("1"));
    problem_says("asked too often").await;
    zone.provider.say(0, None);
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    served(&live.host, &root_as("first")).await;
    let orders = pebble.said().await.matches("Added order").count();
    assert_eq!(orders, 1, "the one order is gone on with");
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_an_order_it_leaves_no_proof_behind() {
    let pebble = authority(86_400).await;
    let zone = Zone::start("lab.test").await;
    zone.hold();
    let lab = Lab::start(config(&zone.section(""))).await;
    until("the proof is made", ORDER_MAX, async || (zone.texts() == [PROOF]).then_some(())).await;
    // As an order would leave it that nobody goes on with.
    let mark = format!("kennel {} acme-challenge", rows("select id from instance").await[0]);
    zone.provider.put("TXT", "_acme-challenge.gone.lab.test", "\"old\"", &mark);
    zone.provider.put("TXT", "_acme-challenge.other.lab.test", "\"theirs\"", "kennel 0000000000000000 acme-challenge");
    let made = zone.provider.records();

    lab.kill9().await;

    until("what was left is swept up", ORDER_MAX, async || (zone.texts().len() == 2).then_some(())).await;
    assert!(zone.texts().contains(&PROOF.to_owned()), "its order is under way");
    assert!(zone.provider.records().iter().all(|record| made.contains(record)), "it is not made anew");
    zone.release();
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    served(&live.host, &root_as("first")).await;
    until("its own proof is gone", ORDER_MAX, async || {
        (zone.texts() == ["_acme-challenge.other.lab.test"]).then_some(())
    })
    .await;
    assert_eq!(pebble.said().await.matches("Added order").count(), 1, "it made no other order");
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_is_renewed_before_it_ends() {
    let pebble = authority(120).await;
    let zone = Zone::start("lab.test").await;
    let lab = Lab::start(config(&zone.section(""))).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let root = root_as("first");
    served(&live.host, &root).await;
    renewed_without_a_gap(&live.host, &root).await;
    until("the proof is gone", ORDER_MAX, async || zone.texts().is_empty().then_some(())).await;
    pebble.stop().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_lead_visitors_here_and_go_with_what_they_were_for() {
    // Its DNS server is told of texts.
    let pebble = authority(86_400).await;
    let zone = Zone::start("test").await;
    zone.provider.put("A", "www.test", "198.51.100.1", "");
    zone.provider.put("A", "taken.test", "198.51.100.2", "");
    let dns = zone.section("zone = \"test\"\nrecords = [\"203.0.113.7\", \"2001:db8::7\"]");
    let specs = ["hello", "other"].map(ProjectSpec::new);
    let mut lab = Lab::start(LabConfig::of(specs).section(&dns)).await;
    let by_hand = ["A taken.test 198.51.100.2", "A www.test 198.51.100.1"];
    let app = |domain: &str| {
        let domain = format!("custom_domain = \"{domain}\"");
        App::default().with(Service::new("api", "one").settings(&["drain_secs = 1", &domain]))
    };
    let wildcards = ["hello", "other"].map(|project| {
        [format!("A *.{project}.lab.test 203.0.113.7"), format!("AAAA *.{project}.lab.test 2001:db8::7")]
    });
    let there = async |what: &str, own: &[&str]| {
        let mut wanted = [own, &by_hand].concat();
        wanted.sort_unstable();
        until(what, ORDER_MAX, async || (zone.hosts() == wanted).then_some(())).await;
    };
    let [hello, other] = wildcards.each_ref().map(|lines| lines.each_ref().map(String::as_str));
    there("each project has a wildcard", &[hello, other].concat()).await;

    let live = lab.deploy_api("hello", "main", &app("shop.test")).await;
    let shop = ["A shop.test 203.0.113.7", "AAAA shop.test 2001:db8::7"];
    there("the custom domain has records", &[&hello[..], &other, &shop].concat()).await;
    lab.deploy_api("other", "main", &app("taken.test")).await;
    until("it is said what is somebody else's", ORDER_MAX, async || {
        lab.journal().await.contains("The DNS record `taken.test` (A 198.51.100.2) is not kennel's own").then_some(())
    })
    .await;

    // A project that leaves the file keeps its records for as long as it is served.
    lab.configure_only(&["other"]);
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    there("they are still there", &[&hello[..], &other, &shop].concat()).await;
    let path = format!("/deployments/{}/teardown", live.id);
    assert_eq!(api::ask(Method::POST, &path).await.status, 202);
    there("they went with the service", &other).await;
    let told = lab.journal().await.matches("`taken.test`").count();
    assert_eq!(told, 1, "it is said once");
    pebble.stop().await;
    lab.finish().await;
}
