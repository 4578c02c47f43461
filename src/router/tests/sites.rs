//! Static sites.

use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rstest::rstest;
use tempfile::TempDir;

use super::*;

pub(super) const OLD: &str = "/nix/store/00000000000000000000000000000000-site";
pub(super) const NEW: &str = "/nix/store/11111111111111111111111111111111-site";

fn site(deployment: i64, root: &str, spa: bool) -> Vec<Route> {
    site_after(deployment, root, &[], spa)
}

/// A site with versions before it.
pub(super) fn site_after(deployment: i64, root: &str, previous: &[&str], spa: bool) -> Vec<Route> {
    let previous = previous.iter().map(|root| root.parse().unwrap()).collect();
    let destination = Destination::Site { root: root.parse().unwrap(), previous, spa };
    vec![Route { target: TargetId(1), destination, ..Route::example(HOST, deployment) }]
}

/// Where the files of `root` lie.
pub(super) fn directory(store: &TempDir, root: &str) -> PathBuf {
    store.path().join("store").join(Path::new(root).file_name().unwrap())
}

pub(super) fn write(dir: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// A store with two versions of a site, and something beside it that nobody may see.
pub(super) fn store() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("secret"), "secret").unwrap();
    let store = temp.path().join("store");
    for (root, version) in [(OLD, "old"), (NEW, "new")] {
        let root = store.join(Path::new(root).file_name().unwrap());
        write(&root, "index.html", format!("front page, {version}"));
        write(&root, "about/index.html", "about");
        write(&root, "empty/file.txt", "text");
        write(&root, "app.0a1b2c3d.js", "js");
        write(&root, "app.0a1b2c3d.js.br", "brotli");
        write(&root, "app.0a1b2c3d.js.gz", "gzipped");
        write(&root, "a b.txt", "0123456789");
        write(&root, "none.txt", "");
        write(&root, "pricing.html", "prices");
        write(&root, "about.html", "not about");
        let other = store.join(format!("22222222222222222222222222222222-other-{version}"));
        write(&other, "linked.css", "linked");
        symlink(other.join("linked.css"), root.join("linked.css")).unwrap();
        symlink(&other, root.join("tree")).unwrap();
        symlink("a b.txt", root.join("inside.txt")).unwrap();
        symlink("../../secret", root.join("outside.txt")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink("..", root.join("store")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    temp
}

pub(super) async fn front(spa: bool) -> (Front, TempDir) {
    let temp = store();
    let config = RouterConfig { store_dir: temp.path().join("store"), ..RouterConfig::default() };
    (Front::with(config, site(1, OLD, spa)).await, temp)
}

#[rstest]
#[case("/", "front page, old", "text/html; charset=utf-8", "no-cache")]
#[case("/index.html?a=b", "front page, old", "text/html; charset=utf-8", "no-cache")]
#[case("/about/", "about", "text/html; charset=utf-8", "no-cache")]
#[case("/pricing", "prices", "text/html; charset=utf-8", "no-cache")]
#[case("/pricing.html", "prices", "text/html; charset=utf-8", "no-cache")]
#[case("/a%20b.txt", "0123456789", "text/plain; charset=utf-8", "no-cache")]
#[case("/none.txt", "", "text/plain; charset=utf-8", "no-cache")]
#[case("/linked.css", "linked", "text/css; charset=utf-8", "no-cache")]
#[case("/tree/linked.css", "linked", "text/css; charset=utf-8", "no-cache")]
#[case("/inside.txt", "0123456789", "text/plain; charset=utf-8", "no-cache")]
#[case("/app.0a1b2c3d.js", "js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable")]
#[tokio::test]
async fn a_file_is_served(#[case] path: &str, #[case] body: &str, #[case] kind: &str, #[case] cache: &str) {
    let (front, _store) = front(false).await;
    let answer = front.get(path, "If-Modified-Since: Tue, 01 Jan 2030 00:00:00 GMT\r\n").await;
    assert_eq!((answer.status, answer.text()), (200, body));
    assert_eq!(answer.header("content-type"), Some(kind));
    assert_eq!(answer.header("cache-control"), Some(cache));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("last-modified"), None);
    let length = body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    let head = front.ask("HEAD", path, "").await;
    assert_eq!((head.status, head.text(), head.header("content-length")), (200, "", Some(length.as_str())));
    assert_eq!(head.header("etag"), answer.header("etag"));
}

#[rstest]
#[case("/missing")]
#[case("/outside.txt")]
#[case("/etc/passwd")]
#[case("/etc/")]
#[case("/store/")]
#[case("/store/00000000000000000000000000000000-site/index.html")]
#[case("/loop")]
#[case("/dangling")]
#[case("/pipe")]
#[case("/empty")]
#[case("/empty/")]
#[case("/index.html/")]
#[case("/index.html/x")]
#[case("/../secret")]
#[case("/%2e%2e/%2e%2e/secret")]
#[case("/..%2f..%2fsecret")]
#[case("//index.html")]
#[case("/./index.html")]
#[tokio::test]
async fn what_is_not_a_file_of_the_site_is_not_found(#[case] path: &str) {
    let (front, _store) = front(false).await;
    let answer = front.get(path, "").await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.text().contains("Page not found"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_path_that_is_not_one_is_refused() {
    let (front, _store) = front(true).await;
    for path in ["/%", "/%zz", "/a%00b"] {
        assert_eq!(front.get(path, "").await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn only_get_and_head_are_for_sites() {
    let (front, _store) = front(true).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = front.ask(method, "/", "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
    }
}

#[rstest]
#[case("/about?a=b", "/about/?a=b")]
#[case("/pricing/", "/pricing")]
#[case("/pricing/?a=b", "/pricing?a=b")]
#[tokio::test]
async fn a_page_is_redirected_to_where_relative_links_are_right(#[case] path: &str, #[case] location: &str) {
    let (front, _store) = front(true).await;
    let answer = front.get(path, "").await;
    assert_eq!((answer.status, answer.header("location")), (308, Some(location)));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
}

#[tokio::test]
async fn a_site_may_have_a_page_of_its_own_for_what_is_not_there() {
    let (front, store) = front(false).await;
    write(&directory(&store, OLD), "404.html", "<h1>Lost?</h1>");
    for path in ["/missing", "/missing.js", "/about/missing", "/outside.txt"] {
        let answer = front.get(path, "If-None-Match: *\r\nRange: bytes=0-1\r\n").await;
        assert_eq!((answer.status, answer.text()), (404, "<h1>Lost?</h1>"), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!((answer.header("cache-control"), answer.header("etag")), (Some("no-cache"), None));
        let head = front.ask("HEAD", path, "").await;
        assert_eq!((head.status, head.text(), head.header("content-length")), (404, "", Some("14")));
    }
    let machine = front.get("/missing", "Accept: application/json\r\n").await;
    assert_eq!((machine.status, machine.header("content-type")), (404, Some("application/json")));
    assert_eq!(front.get("/404.html", "").await.status, 200);
}

#[rstest]
#[case("/deep/link", "", 200)]
#[case("/deep/link/", "Accept: text/html,application/xhtml+xml\r\n", 200)]
#[case("/users/jane.doe", "Accept: */*\r\n", 200)]
#[case("/deep/link", "Accept: application/json\r\n", 404)]
#[case("/deep/link", "Accept: image/avif,image/webp,*/*;q=0\r\n", 404)]
#[case("/missing.js", "", 404)]
#[case("/missing.PNG", "Accept: */*\r\n", 404)]
#[case("/outside.txt", "", 404)]
#[case("/../secret", "", 404)]
#[tokio::test]
async fn a_single_page_application_answers_for_pages_but_not_for_assets(
    #[case] path: &str,
    #[case] headers: &str,
    #[case] status: u16,
) {
    let (front, _store) = front(true).await;
    let answer = front.get(path, headers).await;
    assert_eq!(answer.status, status);
    assert_eq!(answer.text().contains("front page, old"), status == 200);
}

#[rstest]
#[case("bytes=0-3", 206, "0123", "bytes 0-3/10")]
#[case("bytes=7-", 206, "789", "bytes 7-9/10")]
#[case("bytes=-2", 206, "89", "bytes 8-9/10")]
#[case("bytes=5-500", 206, "56789", "bytes 5-9/10")]
#[case("bytes=0-1,4-5", 200, "0123456789", "")]
#[case("bytes=x", 200, "0123456789", "")]
#[tokio::test]
async fn a_part_can_be_asked_for(
    #[case] range: &str,
    #[case] status: u16,
    #[case] body: &str,
    #[case] content_range: &str,
) {
    let (front, _store) = front(false).await;
    let answer = front.get("/a%20b.txt", &format!("Range: {range}\r\n")).await;
    assert_eq!((answer.status, answer.text()), (status, body));
    assert_eq!(answer.header("content-range").unwrap_or_default(), content_range);
    assert_eq!(answer.header("accept-ranges"), Some("bytes"));
}

#[tokio::test]
async fn a_part_that_does_not_exist_gets_416_with_the_length() {
    let (front, _store) = front(false).await;
    let answer = front.get("/a%20b.txt", "Range: bytes=10-\r\n").await;
    assert_eq!((answer.status, answer.header("content-range")), (416, Some("bytes */10")));
}

#[tokio::test]
async fn a_part_of_another_version_is_not_sent() {
    let (front, _store) = front(false).await;
    let etag = front.get("/a%20b.txt", "").await.header("etag").unwrap().to_owned();
    for (condition, status) in
        [(etag.as_str(), 206), ("\"other\"", 200), (&format!("W/{etag}"), 200), ("Thu, 01 Jan 1970 00:00:01 GMT", 200)]
    {
        let answer = front.get("/a%20b.txt", &format!("Range: bytes=0-1\r\nIf-Range: {condition}\r\n")).await;
        assert_eq!(answer.status, status, "{condition}");
    }
}

#[tokio::test]
async fn an_etag_holds_for_one_version_and_encoding_only() {
    let (front, _store) = front(false).await;
    let etag = |answer: &Answer| answer.header("etag").unwrap().to_owned();
    let old = etag(&front.get("/", "").await);
    assert_ne!(old, etag(&front.get("/about/", "").await));
    assert_eq!(front.get("/", &format!("If-Match: {old}\r\n")).await.status, 200);
    assert_eq!(front.get("/", "If-Match: \"x\"\r\n").await.status, 412);
    assert_eq!(front.get("/", &format!("If-Match: W/{old}\r\n")).await.status, 412);
    assert_eq!(front.get("/", &format!("If-Match: \"x\"\r\nIf-None-Match: {old}\r\n")).await.status, 412);
    for condition in [old.clone(), format!("W/{old}"), format!("\"x\", {old}"), "*".to_owned()] {
        let answer = front.get("/", &format!("If-None-Match: {condition}\r\nRange: bytes=0-1\r\n")).await;
        assert_eq!((answer.status, answer.text(), etag(&answer)), (304, "", old.clone()));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!((answer.header("content-length"), answer.header("content-type")), (None, None));
    }
    front.switch(site(2, NEW, false)).await;
    // Same path, same length, same date of the file: only the store path tells the versions apart.
    let answer = front.get("/", &format!("If-None-Match: {old}\r\n")).await;
    assert_eq!((answer.status, answer.text()), (200, "front page, new"));
}

#[rstest]
#[case("gzip, deflate, br", "brotli", Some("br"))]
#[case("gzip", "gzipped", Some("gzip"))]
#[case("br;q=0.1, gzip;q=0.9", "gzipped", Some("gzip"))]
#[case("zstd", "js", None)]
#[case("br;q=0", "js", None)]
#[case("identity, br;q=0.5", "js", None)]
#[tokio::test]
async fn a_prepared_encoding_is_used_where_it_is_understood(
    #[case] accept: &str,
    #[case] body: &str,
    #[case] encoding: Option<&str>,
) {
    let (front, _store) = front(false).await;
    let answer = front.get("/app.0a1b2c3d.js", &format!("Accept-Encoding: {accept}\r\n")).await;
    assert_eq!((answer.text(), answer.header("content-encoding")), (body, encoding));
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
    let plain = front.get("/app.0a1b2c3d.js", "").await;
    assert_eq!(plain.header("etag") == answer.header("etag"), encoding.is_none());
    assert_eq!(front.get("/", &format!("Accept-Encoding: {accept}\r\n")).await.header("vary"), None);
}

#[rstest]
#[case("gzip, deflate", "gzip")]
#[case("gzip, deflate, br, zstd", "br")]
#[case("zstd, gzip;q=0.5", "gzip")]
#[tokio::test]
async fn text_for_which_nothing_is_prepared_is_compressed(#[case] accept: &str, #[case] encoding: &str) {
    let (front, store) = front(false).await;
    let plain = "All work and no play makes a dull site.\n".repeat(2000);
    write(&directory(&store, OLD), "story.txt", &plain);
    write(&directory(&store, OLD), "story.png", &plain);
    let accept = format!("Accept-Encoding: {accept}\r\n");
    let answer = front.get("/story.txt", &accept).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(encoding)));
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    assert_eq!(expand(&answer), plain);
    assert!(answer.body.len() < plain.len() / 10, "{}", answer.body.len());
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    // A part of it, and a 304, are of what was sent.
    let etag = answer.header("etag").unwrap();
    let part = front.get("/story.txt", &format!("{accept}Range: bytes=4-\r\nIf-Range: {etag}\r\n")).await;
    assert_eq!((part.status, part.body.as_slice()), (206, &answer.body[4..]));
    assert_eq!(front.get("/story.txt", &format!("{accept}If-None-Match: {etag}\r\n")).await.status, 304);
    let unencoded = front.get("/story.txt", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((unencoded.status, unencoded.text()), (200, plain.as_str()));
    assert_eq!((unencoded.header("vary"), unencoded.header("content-encoding")), (Some("accept-encoding"), None));
    let picture = front.get("/story.png", &accept).await;
    assert_eq!((picture.body.len(), picture.header("content-encoding")), (plain.len(), None));
}

fn expand(answer: &Answer) -> String {
    let mut plain = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => drop(flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap()),
        Some("br") => brotli::BrotliDecompress(&mut &answer.body[..], &mut plain).unwrap(),
        other => panic!("encoded as {other:?}"),
    }
    String::from_utf8(plain).unwrap()
}

#[rstest]
#[case("big.bin", 1_000_000)]
#[case("huge.bin", 3_000_000)]
#[tokio::test]
async fn a_large_file_is_sent_whole_and_in_part(#[case] name: &str, #[case] length: u32) {
    let (front, store) = front(false).await;
    write(&directory(&store, OLD), name, (0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    let whole = front.get(&format!("/{name}"), "").await;
    assert_eq!(whole.body.len(), length as usize);
    assert!(whole.body.iter().enumerate().all(|(i, byte)| i % 251 == usize::from(*byte)));
    let part = front.get(&format!("/{name}"), "Range: bytes=100-899999\r\n").await;
    assert!(part.status == 206 && part.body == whole.body[100..900_000]);
    let head = front.ask("HEAD", &format!("/{name}"), "").await;
    assert_eq!(head.header("content-length"), whole.header("content-length"));
}

#[tokio::test]
async fn a_site_needs_no_drain() {
    let (front, _store) = front(false).await;
    patiently(front.handle.drain(DeploymentId(1), PATIENCE * 2)).await;
    assert_eq!(front.get("/", "").await.status, 200);
}
