//! What a start would fail for is found before the running daemon gives its place.

use kennel::daemon::Running;
use rstest::rstest;

/// The files a start reads beside its own, each of which may be missing.
#[rstest]
#[case::webhook_secret("secret")]
#[case::token("token")]
#[case::pages("pages")]
#[tokio::test]
async fn a_missing_file_is_named(#[case] missing: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for file in ["secret", "token"] {
        std::fs::write(path(file), "a value").unwrap();
    }
    std::fs::create_dir(path("pages")).unwrap();
    let config = kennel::config::parse(&format!(
        "base_domain = \"a.b\"\nstate_dir = \"{}\"\n[api]\ntoken_file = \"{}\"\n[router]\npages = \"{}\"\n\
         [projects.shop]\nrepo_url = \"https://forge.example/team/shop.git\"\nrepo_type = \"forgejo\"\n\
         webhook_secret_file = \"{}\"\n",
        path("state"),
        path("token"),
        path("pages"),
        path("secret"),
    ))
    .unwrap();
    Running::rehearse(&config).await.unwrap();
    std::fs::rename(path(missing), path("elsewhere")).unwrap();
    let problem = Running::rehearse(&config).await.unwrap_err();
    assert!(format!("{problem:#}").contains(&path(missing)), "{problem:#}");
}
