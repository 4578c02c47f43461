//! Two names never meet in one resource, however long or strange they are.

use std::collections::BTreeSet;

use crate::harness::{App, Deployment, Lab, LabConfig, ProjectSpec, Service, machine};

/// Sees that deployments share nothing, and that each host leads to its own version.
async fn expect_apart(lab: &Lab, deployments: &[(Deployment, &str)]) {
    let mut seen = BTreeSet::new();
    for (deployment, version) in deployments {
        let user = machine::property(&deployment.unit(), "User").await;
        let data = machine::property(&deployment.unit(), "StateDirectory").await;
        let port = deployment.port.map(|port| port.to_string()).unwrap_or_default();
        assert!(user.len() <= 31 && user.starts_with("kennel-"), "{user}");
        for label in deployment.host.split('.') {
            assert!(!label.is_empty() && label.len() <= 63, "{}", deployment.host);
        }
        for (what, name) in [
            ("host", &deployment.host),
            ("tag", &deployment.journal_tag),
            ("user", &user),
            ("data directory", &data),
            ("port", &port),
        ] {
            assert!(seen.insert((what, name.clone())), "two have the {what} `{name}`");
        }
        assert_eq!(lab.version(&deployment.host).await, *version);
        lab.post_data(&deployment.host, version).await;
    }
    for (deployment, version) in deployments {
        let kept: String = lab.visit(&deployment.host, "/data").await.expect(200).json();
        assert_eq!(kept, *version, "each has data of its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_whose_names_come_out_alike_stay_apart() {
    let lab = Lab::hello().await;
    let slash = lab.deploy_api("hello", "feature/x", &App::api("slash")).await;
    let dash = lab.deploy_api("hello", "feature-x", &App::api("dash")).await;
    let upper = lab.deploy_api("hello", "Feature_X", &App::api("upper")).await;
    expect_apart(&lab, &[(slash.clone(), "slash"), (dash, "dash"), (upper, "upper")]).await;

    let again = lab.deploy_api("hello", "feature/x", &App::api("again")).await;
    assert_eq!(again.host, slash.host, "a name stays with its branch");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_with_a_long_name_is_cut_and_stays_apart_from_its_like() {
    let lab = Lab::hello().await;
    let long = "fix/".to_owned() + &"the-very-long-story-of-a-bug-".repeat(4);
    assert_eq!(long.len(), 120);
    let other = long[..119].to_owned() + "x";
    let one = lab.deploy_api("hello", &long, &App::api("one")).await;
    let two = lab.deploy_api("hello", &other, &App::api("two")).await;
    expect_apart(&lab, &[(one, "one"), (two, "two")]).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_called_like_a_pull_request_is_not_it() {
    let lab = Lab::hello().await;
    let branch = lab.deploy_api("hello", "pr-7", &App::api("branch")).await;
    let commit = lab.repo("hello").commit("main", &App::api("pull").files(), "Improve things");
    let answer = lab.pull("hello", "opened", 7, &commit).await.expect(202);
    let build = answer.json::<serde_json::Value>()["build"].as_i64().unwrap();
    let pull = lab.live(build, "api").await;
    expect_apart(&lab, &[(branch.clone(), "branch"), (pull.clone(), "pull")]).await;

    lab.pull("hello", "closed", 7, &commit).await.expect(202);
    lab.becomes(pull.id, "retired").await;
    assert_eq!(lab.version(&branch.host).await, "branch");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_join_alike_stay_apart() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("a-b"), ProjectSpec::new("a")])).await;
    let mut all = vec![
        (lab.deploy_api("a-b", "c", &App::api("a-b c")).await, "a-b c"),
        (lab.deploy_api("a", "b-c", &App::api("a b-c")).await, "a b-c"),
    ];
    let twice = App::default().with(Service::new("api-v2", "api-v2 main"));
    all.push((lab.deploy("a", "main", &twice).await.remove("api-v2").unwrap(), "api-v2 main"));
    all.push((lab.deploy_api("a", "v2-main", &App::api("api v2-main")).await, "api v2-main"));
    expect_apart(&lab, &all).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_and_a_service_with_the_longest_names_work() {
    let project = "p".repeat(40);
    let service = "s".repeat(40);
    let lab = Lab::start(LabConfig::of([ProjectSpec::new(&project)])).await;
    let app = App::default().with(Service::new(&service, "one"));
    let one = lab.deploy(&project, &"b".repeat(100), &app).await.remove(&service).unwrap();
    let app = App::default().with(Service::new(&service, "two"));
    let two = lab.deploy(&project, &("b".repeat(99) + "c"), &app).await.remove(&service).unwrap();
    expect_apart(&lab, &[(one, "one"), (two, "two")]).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_belongs_to_whom_it_was_given_first() {
    let lab = Lab::start(LabConfig::of([
        ProjectSpec::new("first"),
        ProjectSpec::new("second"),
        ProjectSpec::new("third").line("custom_domains = [\"*.third.example\"]"),
    ]))
    .await;
    let app = |version: &str, domain: &str| {
        let domain = format!("custom_domain = \"{domain}\"");
        App::default().with(Service::new("api", version).settings(&["drain_secs = 1", &domain]))
    };
    lab.deploy_api("first", "main", &app("first", "shop.example")).await;
    assert_eq!(lab.version("shop.example").await, "first");

    for (project, domain) in [("second", "shop.example"), ("third", "shop.example"), ("third", "x.lab.test")] {
        let pushed = lab.push(project, "main", &app(project, domain)).await;
        let refused = lab.settled(pushed.build, "api").await;
        assert_eq!(refused.state, "failed");
        assert!(refused.reason().contains(domain), "{}", refused.reason());
        assert_eq!(lab.version("shop.example").await, "first");
    }
    lab.deploy_api("third", "main", &app("third", "shop.third.example")).await;
    assert_eq!(lab.version("shop.third.example").await, "third");

    // Another branch of the same project serves under its own name only.
    let topic = lab.deploy_api("first", "topic", &app("topic", "shop.example")).await;
    assert_eq!(lab.version(&topic.host).await, "topic");
    assert_eq!(lab.version("shop.example").await, "first");
    lab.finish().await;
}
