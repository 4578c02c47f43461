//! Static sites, served straight from the store.

use std::fs;

use http::Method;

use crate::harness::http::{request, send};
use crate::harness::{App, Lab, ROUTER};

const LINK: &str = "/var/lib/kennel/sites/hello/main/web";

fn app(page: &str) -> App {
    App::default().site("web", page).file("web/assets/app.css", "body { color: black }").file("web/secret/.env", "x")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_served_and_linked_to_and_replaced() {
    let lab = Lab::hello().await;
    let one = lab.deploy("hello", "main", &app("one")).await.remove("web").unwrap();
    let first = lab.visit(&one.host, "/").await.expect(200);
    let first_tag = first.header("etag").to_owned();
    assert!(!first_tag.is_empty() && first.header("last-modified").is_empty(), "{:?}", first.headers);
    let css = lab.visit(&one.host, "/assets/app.css").await.expect(200);
    assert!(css.header("content-type").starts_with("text/css"), "{:?}", css.headers);
    lab.visit(&one.host, "/nothing").await.expect(404);
    lab.visit(&one.host, "/../../../../etc/passwd").await.expect(404);
    lab.visit(&one.host, "/%2e%2e/%2e%2e/etc/passwd").await.expect(404);
    send(ROUTER, request(Method::POST, &one.host, "/", "x")).await.unwrap().expect(405);
    let first_path = fs::read_link(LINK).unwrap();
    assert!(first_path.starts_with("/nix/store"));

    lab.deploy("hello", "main", &app("two")).await;

    let second = lab.visit(&one.host, "/").await.expect(200);
    assert_eq!(second.text(), "two");
    assert_ne!(second.header("etag"), first_tag, "files of the store have one date: the tag must tell versions apart");
    assert_ne!(fs::read_link(LINK).unwrap(), first_path);
    assert_eq!(fs::read_to_string(format!("{LINK}/index.html")).unwrap(), "two");
    lab.becomes(one.id, "retired").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_page_application_answers_every_path() {
    let lab = Lab::hello().await;
    let live = lab.deploy("hello", "main", &app("spa").site_setting("spa = true")).await.remove("web").unwrap();
    assert_eq!(lab.visit(&live.host, "/dogs/7/walks").await.expect(200).text(), "spa");
    assert!(lab.visit(&live.host, "/assets/app.css").await.expect(200).text().contains("black"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_survives_the_garbage_collector() {
    let lab = Lab::hello().await;
    let both = App::api("one").site("web", "kept");
    let live = lab.deploy("hello", "main", &both).await;
    crate::harness::machine::ok("nix-collect-garbage", &[]).await;
    assert_eq!(lab.visit(&live["web"].host, "/").await.expect(200).text(), "kept");
    crate::harness::machine::ok("systemctl", &["restart", &live["api"].unit()]).await;
    crate::harness::until("the service is back", std::time::Duration::from_secs(10), async || {
        (lab.visit(&live["api"].host, "/").await.status == 200).then_some(())
    })
    .await;
    lab.finish().await;
}
