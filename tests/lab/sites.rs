//! Static sites, served straight from the store.

use std::fs;
use std::time::Duration;

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

/// A version of a site whose script is called by what is in it, as bundlers do it.
fn bundled(number: u32) -> App {
    App::default()
        .site("web", &format!("page {number}"))
        .file(&format!("web/assets/app-{number:x}a1b2c3d.js"), format!("script {number}"))
        .file(&format!("web/page{number}.html"), "gone tomorrow")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_is_open_keeps_its_scripts_until_its_version_falls_out_of_retention() {
    let lab = Lab::hello().await;
    let live = lab.deploy("hello", "main", &bundled(1)).await.remove("web").unwrap();
    assert_eq!(lab.visit(&live.host, "/page1").await.expect(200).text(), "gone tomorrow");
    lab.deploy("hello", "main", &bundled(2)).await;
    let script = async || lab.visit(&live.host, "/assets/app-1a1b2c3d.js").await;
    assert_eq!(script().await.expect(200).text(), "script 1");
    lab.visit(&live.host, "/page1").await.expect(404);
    lab.becomes(live.id, "retired").await;
    lab.restart().await;
    assert_eq!(script().await.expect(200).text(), "script 1", "after a restart, with the version retired");
    for number in 3..=6 {
        lab.deploy("hello", "main", &bundled(number)).await;
    }
    assert_eq!(lab.visit(&live.host, "/assets/app-2a1b2c3d.js").await.expect(200).text(), "script 2");
    crate::harness::until("the sixth version has pushed the first out", Duration::from_secs(90), async || {
        (script().await.status == 404).then_some(())
    })
    .await;
    assert_eq!(lab.visit(&live.host, "/assets/app-2a1b2c3d.js").await.expect(200).text(), "script 2");
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
    crate::harness::until("the service is back", Duration::from_secs(10), async || {
        (lab.visit(&live["api"].host, "/").await.status == 200).then_some(())
    })
    .await;
    lab.finish().await;
}
