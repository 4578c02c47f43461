//! What is kept in memory of static sites, and what answers for their versions that are no longer live.

use std::time::Instant;

use super::sites::{NEW, OLD, directory, front, site_after, store, write};
use super::*;
use crate::router::Limits;

const HASHED: &str = "/assets/page-0a1b2c3d.js";

#[tokio::test]
async fn what_was_sent_once_is_sent_again_without_the_disk() {
    let (front, store) = front(false).await;
    let text = "the same words again and again, ".repeat(100);
    write(&directory(&store, OLD), "words.txt", &text);
    let gzip = "Accept-Encoding: gzip\r\n";
    let first = front.get("/words.txt", "").await;
    let compressed = front.get("/words.txt", gzip).await;
    front.get("/about", "").await;
    front.get("/missing", "").await;
    std::fs::remove_dir_all(store.path()).unwrap();

    let again = front.get("/words.txt", "").await;
    assert_eq!((again.status, again.text()), (200, text.as_str()));
    assert_eq!(again.header("etag"), first.header("etag"));
    assert_eq!(front.get("/words.txt", gzip).await.body, compressed.body);
    assert_eq!(front.get("/words.txt", "Range: bytes=4-7\r\n").await.text(), "same");
    assert_eq!(front.get("/words.txt", "If-None-Match: *\r\n").await.status, 304);
    assert_eq!(front.ask("HEAD", "/words.txt", "").await.header("content-length"), Some("3200"));
    assert_eq!(front.get("/about", "").await.status, 308);
    assert_eq!(front.get("/missing", "").await.status, 404);
    // Only this needs the disk, which is not there.
    assert_eq!(front.get("/a%20b.txt", "").await.status, 500);
}

#[tokio::test]
async fn memory_has_a_bound_and_comes_back_when_a_site_goes() {
    const BOUND: u64 = 2_000_000;
    let store = store();
    for number in 0..60 {
        write(&directory(&store, OLD), &format!("{number}.bin"), vec![number; 100_000]);
    }
    let config = RouterConfig {
        store_dir: store.path().join("store"),
        limits: Limits { site_memory_bytes: BOUND, ..Limits::default() },
        ..RouterConfig::default()
    };
    let front = Front::with(config, site_after(1, OLD, &[], false)).await;
    let kept = || front.handle.shared.files.weight();
    for round in 0..2 {
        for number in 0..60 {
            let answer = front.get(&format!("/{number}.bin"), "").await;
            assert_eq!(answer.body, vec![number; 100_000], "in round {round}");
            assert!(kept() <= BOUND, "{}", kept());
        }
        for number in 0..200 {
            assert_eq!(front.get(&format!("/missing/{number}"), "").await.status, 404);
        }
    }
    assert!(kept() > BOUND / 4, "{}", kept());
    front.switch(Vec::new()).await;
    let begun = Instant::now();
    while kept() > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} bytes are still kept", kept());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_hashed_asset_outlives_its_version_and_nothing_else_does() {
    let (front, store) = front(true).await;
    let old = directory(&store, OLD);
    for (path, content) in [
        (&HASHED[1..], "old asset"),
        ("assets/shared-1b2c3d4e.css", "old style"),
        ("retracted.html", "we never said that"),
        ("plain.js", "plain"),
        ("report.0a1b2c3d.html", "page"),
    ] {
        write(&old, path, content);
    }
    write(&directory(&store, NEW), "assets/shared-1b2c3d4e.css", "new style");
    front.switch(site_after(2, NEW, &[OLD], true)).await;
    let asset = front.get(HASHED, "").await;
    assert_eq!((asset.status, asset.text()), (200, "old asset"));
    assert_eq!(asset.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(front.get("/assets/shared-1b2c3d4e.css", "").await.text(), "new style");
    assert_eq!(front.get("/plain.js", "").await.status, 404);
    assert_eq!(front.get("/assets/none-0a1b2c3d.js", "").await.status, 404);
    for path in ["/", "/retracted.html", "/retracted", "/report.0a1b2c3d.html"] {
        assert_eq!(front.get(path, "").await.text(), "front page, new", "{path}");
    }
    // Two versions later it is still there, and then it has fallen out of retention.
    const NEWEST: &str = "/nix/store/33333333333333333333333333333333-site";
    write(&directory(&store, NEWEST), "index.html", "front page, newest");
    front.switch(site_after(3, NEWEST, &[NEW, OLD], false)).await;
    assert_eq!(front.get(HASHED, "").await.text(), "old asset");
    assert_eq!(front.get("/assets/shared-1b2c3d4e.css", "").await.text(), "new style");
    front.switch(site_after(3, NEWEST, &[NEW], false)).await;
    assert_eq!(front.get(HASHED, "").await.status, 404);
}

#[tokio::test]
async fn going_back_to_a_version_brings_its_files_back() {
    let (front, _store) = front(false).await;
    let old = front.get("/", "").await;
    front.switch(site_after(2, NEW, &[OLD], false)).await;
    assert_eq!(front.get("/", "").await.text(), "front page, new");
    front.switch(site_after(3, OLD, &[NEW], false)).await;
    let back = front.get("/", "").await;
    assert_eq!((back.text(), back.header("etag")), ("front page, old", old.header("etag")));
}
