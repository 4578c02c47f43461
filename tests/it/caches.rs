//! Pushes to binary caches are rows: made with the end of a build, put off when they fail, gone with what they push.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kennel::caches::Caches;
use kennel::model::settings::Manifest;
use kennel::model::{BranchRef, BuildId, Cache, Environment, ServiceName};
use kennel::store::{BuildOutcome, NewArtifact, Push, PushView, RunId, Store};
use kennel::wake::Bell;
use serde_json::json;
use tempfile::TempDir;

/// One build that made a site, of a repository with a Cachix cache.
struct Built {
    dir: TempDir,
    store: Store,
    build: BuildId,
    site: ServiceName,
}

impl Built {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        let push = Push {
            project: "shop".parse().unwrap(),
            branch: BranchRef::head("main").unwrap(),
            commit: "0123456789012345678901234567890123456789".parse().unwrap(),
            title: None,
            environment: Environment::Prod,
        };
        store.accept_push(None, &push).await.unwrap();
        let build = store.claim_build(&RunId::fresh()).await.unwrap().unwrap();
        let settings = json!({ "kind": "site", "flake_output": "web", "spa": false, "custom_domain": null });
        let settings: kennel::model::Settings = serde_json::from_value(settings).unwrap();
        let site: ServiceName = "web".parse().unwrap();
        let path = "/nix/store/00000000000000000000000000000000-web".parse().unwrap();
        let artifact =
            NewArtifact { name: site.clone(), settings: settings.clone(), result: Ok((path, None)), nix_ms: 1 };
        store.record_artifact(&build, &artifact).await.unwrap();
        let manifest = Manifest { targets: [(site.clone(), settings)].into(), cachix: Some("mine".to_owned()) };
        let domain = "example.com".parse().unwrap();
        store.finish_build(&build, &domain, &BuildOutcome::Finished(manifest)).await.unwrap();
        Self { dir, store, build: build.id, site }
    }

    /// Does what is due, with these lines in the daemon's file.
    async fn push(&self, lines: &str) -> Vec<PushView> {
        let text = format!("base_domain = \"a.b\"\nstate_dir = \"{}\"\n{lines}\n", self.dir.path().display());
        let config = Arc::new(ArcSwap::from_pointee(kennel::config::parse(&text).unwrap()));
        Caches::new(self.store.clone(), config, self.dir.path().join("caches"), Bell::default())
            .run_once()
            .await
            .unwrap();
        self.store.list_pushes(self.build).await.unwrap()
    }
}

#[tokio::test]
async fn a_build_waits_to_be_pushed_to_each_of_its_caches() {
    let built = Built::new().await;
    let waiting = built.store.list_pushes(built.build).await.unwrap();
    let waiting: Vec<_> = waiting.iter().map(|push| (push.cache, push.name.as_deref(), push.attempts)).collect();
    assert_eq!(waiting, [(Cache::Cachix, Some("mine"), 0), (Cache::Store, None, 0)]);
}

#[tokio::test]
async fn where_no_cache_is_configured_nothing_waits() {
    let built = Built::new().await;
    assert!(built.push("").await.is_empty());
    assert_eq!(built.store.next_push().await.unwrap(), None);
}

#[tokio::test]
async fn a_push_that_fails_is_put_off_with_its_reason_and_a_reload_has_it_tried() {
    let built = Built::new().await;
    // Below a file there can be no cache, whether there is a `nix` here or none.
    let lines = "[builder.cache]\nto = \"file:///dev/null/cache\"";
    let failed = built.push(lines).await;
    assert_eq!((failed.len(), failed[0].cache, failed[0].attempts), (1, Cache::Store, 1));
    let problem = failed[0].problem.as_deref().unwrap();
    assert!(problem.contains("push to `file:///dev/null/cache`"), "{problem}");
    let due = built.store.next_push().await.unwrap().unwrap();
    assert!(due <= Duration::from_secs(2), "{due:?}");

    built.store.retry_pushes().await.unwrap();
    assert_eq!(built.push(lines).await[0].attempts, 2);
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_not_pushed() {
    let built = Built::new().await;
    built.store.forget_root(built.build, &built.site).await.unwrap();
    assert!(built.push("[builder.cache]\nto = \"file:///dev/null/cache\"").await.is_empty());
}
