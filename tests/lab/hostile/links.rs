//! Links that lead out of the repository, or out of the store: they are shown to nobody and started by nobody.

use http::{Method, header};

use super::{Canaries, HOST_DIR};
use crate::harness::app::{Entry, Files, system};
use crate::harness::http::{request, send};
use crate::harness::{App, Lab, ROUTER, machine};

/// A repository whose outputs are archives, unpacked: the only way to a link in the store without a network.
async fn archives(manifest: &str, make: &str, outputs: &[&str]) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    machine::ok("sh", &["-euc", &format!("cd {at}; {make}")]).await;
    let packages: String = outputs
        .iter()
        .map(|name| {
            format!(
                "{name} = derivation {{ name = \"{name}\"; system = \"{}\"; builder = \"builtin:unpack-channel\"; \
                 src = ./{name}.tar; channelName = \"{}\"; }};\n",
                system(),
                if *name == "web" { "site" } else { "bin" }
            )
        })
        .collect();
    let flake = format!("{{ outputs = _: {{ packages.{} = {{\n{packages}}}; }}; }}", system());
    let mut files = App::default().file("flake.nix", flake).file("kennel.toml", manifest).files();
    for name in outputs {
        let archive = std::fs::read(dir.path().join(format!("{name}.tar"))).unwrap();
        files.insert(format!("{name}.tar"), Entry::File(archive));
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_serves_nothing_that_its_links_lead_to_outside_the_store() {
    let lab = Lab::hello().await;
    let canaries = Canaries::place();
    let (secret, readable) = (canaries.secret.display(), canaries.readable.display());
    let make = format!(
        "mkdir site; cd site; echo fine >ok.html; ln -s ok.html inside; ln -s /etc/shadow index.html; \
         ln -s {secret} secret; ln -s {readable} readable; ln -s {HOST_DIR} dir; ln -s ../../../..{readable} up; \
         ln -s /nix/store store; ln -s /nix/store/../..{readable} through; ln -s loop loop; ln -s /proc/self/environ env; \
         ln -s /dev/zero zero; echo plain >app.js; ln -s {readable} app.js.gz; mkdir sub; ln -s {readable} sub/index.html; \
         cd ..; tar cf web.tar site"
    );
    let files = archives("[static_sites.web]\nspa = true\n", &make, &["web"]).await;
    let commit = lab.repo("hello").commit("main", &files, "Link out");
    let pushed = lab.push_commit("hello", "main", &commit).await;
    let live = lab.live(pushed.build, "web").await;

    assert_eq!(lab.visit(&live.host, "/site/ok.html").await.expect(200).text(), "fine\n");
    assert_eq!(lab.visit(&live.host, "/site/inside").await.expect(200).text(), "fine\n");
    for path in [
        "/site/",
        "/site/index.html",
        "/site/secret",
        "/site/readable",
        "/site/dir/",
        "/site/dir/readable",
        "/site/up",
        "/site/store/",
        "/site/through",
        "/site/loop",
        "/site/env",
        "/site/zero",
        "/site/sub/",
        "/site/app.js.gz",
        "/",
        "/any",
    ] {
        let answer = lab.visit(&live.host, path).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert!(!answer.text().contains(&canaries.word) && !answer.text().contains("root:"), "{path}");
    }
    let mut compressed = request(Method::GET, &live.host, "/site/app.js", "");
    compressed.headers_mut().insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("gzip"));
    assert_eq!(send(ROUTER, compressed).await.unwrap().expect(200).text(), "plain\n");
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_outside_the_store_is_never_started() {
    let lab = Lab::hello().await;
    let make = "mkdir bin; cd bin; ln -s /usr/bin/python3 api; cd ..; tar cf api.tar bin; rm -r bin; \
                ln -s /usr/bin bin; tar cf env.tar bin; rm bin; mkdir bin; ln -s ../../../../usr/bin/env bin/up; tar cf up.tar bin; \
                rm -r bin; mkdir -p bin; ln -s /bin bin/loop; tar cf loop.tar bin";
    let names = ["api", "env", "up", "loop"];
    let manifest: String = names.iter().map(|name| format!("[services.{name}]\n")).collect();
    let files = archives(&manifest, make, &names).await;
    let commit = lab.repo("hello").commit("main", &files, "Link out");
    let pushed = lab.push_commit("hello", "main", &commit).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    for name in names {
        let reason = build.artifact(name).reason.clone().unwrap_or_default();
        println!("{name}: {reason}");
        assert!(reason.contains("leaves the Nix store"), "{name}: {reason}");
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_nix_reads_are_not_links_to_the_host() {
    let lab = Lab::hello().await;
    let canaries = Canaries::place();
    for (n, (name, target)) in [
        ("flake.nix", format!("{HOST_DIR}/dir/flake.nix")),
        ("flake.lock", canaries.readable.display().to_string()),
        ("flake.lock", "/dev/zero".to_owned()),
        ("api", HOST_DIR.to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut files = App::api("one").files();
        files.retain(|path, _| !path.starts_with(&format!("{name}/")));
        files.insert(name.to_owned(), Entry::Link(target.clone()));
        let commit = lab.repo("hello").commit("main", &files, "Link out");
        let pushed = lab.push_commit("hello", &format!("try{n}"), &commit).await;
        let build = lab.ended_as(pushed.build, "failed").await;
        println!("{name} -> {target}: {:?}", build.artifact("api").reason);
    }
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}
