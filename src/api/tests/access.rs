//! Who may ask, by socket, by token and by user.

use super::*;

#[tokio::test]
async fn a_local_peer_passes_by_its_sockets_owner_alone() {
    let harness = Harness::new().await;
    let builds = format!("http://{}/builds", harness.tcp);
    if nix::unistd::Uid::effective().is_root() {
        assert_eq!(harness.tcp("GET", "/builds", &LOCAL, "").await.status, 200);
        assert_eq!(curl_as(NOBODY, &[&builds]).await.as_deref(), Some("403"));
        let cancel = format!("http://{}/builds/1/cancel", harness.tcp);
        assert_eq!(curl_as(NOBODY, &["--request", "POST", &cancel]).await.as_deref(), Some("403"));
        assert_eq!(curl_as("0", &["--request", "POST", &cancel]).await.as_deref(), Some("404"), "allowed, not there");
    } else {
        assert_eq!(harness.tcp("GET", "/builds", &LOCAL, "").await.status, 403);
    }
}

#[tokio::test]
async fn a_member_of_the_group_passes() {
    let Ok(Some(user)) = nix::unistd::User::from_uid(65_534.into()) else { return };
    let Ok(Some(group)) = nix::unistd::Group::from_gid(user.gid) else { return };
    let harness = Harness::with(Access { token: None, group: group.name, control_domain: None }).await;
    if let Some(status) = curl_as(NOBODY, &[&format!("http://{}/builds", harness.tcp)]).await {
        assert_eq!(status, "200");
    }
}

#[tokio::test]
async fn a_token_passes_for_whoever_holds_it() {
    let token = Some(SecretString::from("s3cret"));
    let access = Access { token, group: "no-such-group".to_owned(), control_domain: None };
    let harness = Harness::with(access).await;
    let builds = format!("http://{}/builds", harness.tcp);
    if let Some(status) = curl_as(NOBODY, &["--header", "Authorization: Bearer s3cret", &builds]).await {
        assert_eq!(status, "200");
        let wrong = ["--header", "Authorization: Bearer wrong", &builds];
        assert_eq!(curl_as(NOBODY, &wrong).await.as_deref(), Some("401"));
        assert_eq!(curl_as("0", &wrong).await.as_deref(), Some("401"), "a wrong token counts, whoever sends it");
        assert_eq!(curl_as(NOBODY, &[&builds]).await.as_deref(), Some("403"));
    }
}

#[tokio::test]
async fn the_unix_socket_asks_the_kernel_who_is_there() {
    use std::os::unix::fs::PermissionsExt as _;

    let harness = Harness::new().await;
    let mode = std::fs::metadata(&harness.unix).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "there is no group, so it is root's alone");
    assert_eq!(harness.get("/builds").await.status, 200);
    for path in [harness.dir.path(), &harness.unix] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let socket = harness.unix.display().to_string();
    if let Some(status) = curl_as(NOBODY, &["--unix-socket", &socket, "http://x/builds"]).await {
        assert_eq!(status, "403");
    }
}

#[test]
fn the_unix_socket_belongs_to_the_group() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let Ok(Some(group)) = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("kennel.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    drop(listen_unix(path, &group.name).unwrap());
    let _second = listen_unix(path, &group.name).expect("one left over is replaced");
    let metadata = std::fs::metadata(path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, group.gid.as_raw()));
}

#[tokio::test]
async fn a_web_page_cannot_use_the_operators_rights() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let harness = Harness::new().await;
    let rebound = [("host", "evil.example.com:3000")];
    assert_eq!(harness.tcp("GET", "/builds", &rebound, "").await.status, 403);
    assert_eq!(harness.tcp("GET", "/builds", &[], "").await.status, 403, "no Host at all");
    let page = [("host", "127.0.0.1:3000"), ("origin", "http://api-main.hello.example.com")];
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &page, "").await.status, 403);
    let origin_null = [("host", "127.0.0.1:3000"), ("origin", "null")];
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &origin_null, "").await.status, 403);
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &LOCAL, "").await.status, 404, "curl sends no Origin");
}

#[tokio::test]
async fn whom_nobody_vouches_for_comes_from_outside() {
    use tower::ServiceExt as _;

    let harness = Harness::new().await;
    for path in ["/builds", "/nowhere", "/builds/1/cancel"] {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = router(harness.api.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 403, "{path}");
    }
}

#[tokio::test]
async fn a_flood_of_wrong_tokens_does_not_fill_the_log() {
    use tower::ServiceExt as _;

    let token = Some(SecretString::from("s3cret"));
    let harness = Harness::with(Access { token, group: "no-such-group".to_owned(), control_domain: None }).await;
    let app = router(harness.api.clone());
    let log = harness.dir.path().join("log");
    let writer = std::fs::File::create(&log).unwrap();
    let _log = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(writer).finish());
    let ask = async |peer: [u8; 4]| {
        let request = Request::builder().uri("/builds").header("authorization", "Bearer wrong");
        let request = request.extension(Caller::Outside).extension(ConnectInfo(SocketAddr::from((peer, 1))));
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), 401, "each of them is answered");
    };
    for _ in 0..1000 {
        ask([192, 0, 2, 1]).await;
    }
    ask([192, 0, 2, 2]).await;
    let log = std::fs::read_to_string(log).unwrap();
    let told = |source: &str| log.matches(&format!("Refused an operator's request from {source}: ")).count();
    assert!((2..100).contains(&told("192.0.2.1")), "{log}");
    assert_eq!(told("192.0.2.2"), 1, "{log}");
}

#[tokio::test]
async fn routes_of_others_can_be_merged_and_are_not_guarded() {
    use tower::ServiceExt as _;

    let harness = Harness::new().await;
    let webhook = Router::new().route("/webhook/{project}", post(async || "open"));
    let app = router(harness.api.clone()).merge(webhook);
    let request = Request::builder().method("POST").uri("/webhook/hello").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(request).await.unwrap().status().as_u16(), 200);
}
