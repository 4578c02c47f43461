//! The flake and the NixOS module, without nixpkgs: real Nix evaluates and builds them over the stand-ins of tests/nix,
//! and over nixpkgs' own `lib` where the lab was given one; what comes out runs on this machine.

mod runs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::harness::machine;

const SOURCE: &str = "/lab/source";
const NIXPKGS: &str = "/lab/nixpkgs";
/// What the stand-in packages need of the machine. Not `/bin`: Nix, as root, would write its own `/bin/sh` into it.
const SANDBOX: &str = "/usr /lib=/usr/lib /lib64=/usr/lib64";

/// Every `lib` to test with, as the arguments of tests/nix.
fn libs() -> Vec<String> {
    let mut libs = vec!["{ }".to_owned()];
    if Path::new(NIXPKGS).join("lib").exists() {
        libs.push(format!("{{ nixpkgs = {NIXPKGS}; }}"));
    }
    libs
}

async fn nix(arguments: &[&str]) -> Output {
    machine::run("nix", &[arguments, &["--option", "extra-sandbox-paths", SANDBOX]].concat()).await
}

/// What an evaluation or a build says, without the remark every command of Nix makes here.
fn said(output: &Output) -> String {
    let text = machine::text(&output.stderr);
    text.lines().filter(|line| !line.contains("you don't have Internet access")).collect::<Vec<_>>().join("\n")
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    machine::text(&output.stdout)
}

fn expression(lib: &str, body: &str) -> String {
    format!("with import {SOURCE}/tests/nix {lib}; {body}")
}

async fn evaluate(lib: &str, body: &str) -> Output {
    nix(&["eval", "--impure", "--raw", "--expr", &expression(lib, body)]).await
}

async fn build(lib: &str, body: &str) -> Output {
    nix(&["build", "--impure", "--no-link", "--print-out-paths", "--expr", &expression(lib, body)]).await
}

/// The path that was built.
fn path(output: &Output) -> PathBuf {
    succeeded(output).trim().into()
}

#[tokio::test]
async fn every_nix_file_parses() {
    let find = ["-c", "find /lab/source -name '*.nix' -not -path '*/target/*' -exec nix-instantiate --parse {} +"];
    let parsed = machine::run("sh", &find).await;
    assert!(parsed.status.success(), "{}", said(&parsed));
    assert!(parsed.stdout.len() > 10_000, "there are files to parse");
}

#[tokio::test]
async fn a_small_and_a_full_configuration_pass_the_daemons_check_without_a_warning() {
    for lib in libs() {
        for name in ["minimal", "full"] {
            let evaluated = evaluate(&lib, &format!("builtins.toJSON {name}.warnings")).await;
            assert_eq!(succeeded(&evaluated), "[]", "{name} over {lib}");
            assert_eq!(said(&evaluated), "", "{name} over {lib}");
            let file = path(&build(&lib, &format!("{name}.services.kennel.configFile")).await);
            machine::ok("kennel", &["check-config", file.to_str().unwrap()]).await;
        }
        let file = path(&build(&lib, "full.services.kennel.configFile").await);
        let file: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
        let shop = &file["projects"]["shop"];
        assert_eq!(shop["secrets"]["prod"]["JWT_SECRET"]["file"].as_str(), Some("/run/secrets/shop-jwt"));
        assert_eq!(shop["branches"].as_array().unwrap().len(), 2);
        assert_eq!(file["builder"]["timeout"].as_str(), Some("30m"), "keys the module does not know are passed on");
        // What the daemon itself reads systemd hands over; what services and fetches read is root's side's to open.
        let credential = "/run/credentials/kennel.service/projects.shop.webhook_secret_file";
        assert_eq!(shop["webhook_secret_file"].as_str(), Some(credential));
        assert_eq!(shop["ssh_key_file"].as_str(), Some("/run/agenix/shop-key"));
        let credentials = evaluate(&lib, "builtins.toJSON full.systemd.services.kennel.serviceConfig.LoadCredential");
        let credentials: Vec<String> = serde_json::from_str(&succeeded(&credentials.await)).unwrap();
        assert_eq!(
            credentials,
            [
                "api.token_file:/run/secrets/kennel-token",
                "valkey.url_file:/var/lib/kennel-secrets/valkey-url",
                "postgres.url_file:/var/lib/kennel-secrets/postgres-url",
                "dns.token_file:/run/agenix/dns",
                "projects.shop.webhook_secret_file:/run/secrets/shop-webhook",
                "projects.site.webhook_secret_file:/run/secrets/site-webhook",
            ]
        );
        let sockets = evaluate(&lib, "builtins.toJSON full.systemd.sockets.kennel.listenStreams").await;
        let sockets: Vec<String> = serde_json::from_str(&succeeded(&sockets)).unwrap();
        assert_eq!(sockets, ["", "0.0.0.0:80", "[::]:443", "0.0.0.0:3000", "/run/kennel/kennel.sock"]);
        let ports = evaluate(&lib, "builtins.toJSON full.networking.firewall.allowedTCPPorts").await;
        assert_eq!(succeeded(&ports), "[80,443]");
        let closed = evaluate(&lib, "builtins.toJSON minimal.networking.firewall.allowedTCPPorts").await;
        assert_eq!(succeeded(&closed), "[]", "the firewall is opened only when asked");
    }
}

#[tokio::test]
async fn a_mistake_fails_the_build_with_the_daemons_own_words() {
    for lib in libs() {
        for (mistake, words) in [
            ("settings.router.htpp = \"0.0.0.0:80\"", "`router.htpp`: unknown key; did you mean `http`?"),
            ("settings.bilder = { }; settings.builder.jobs = 3", "`builder.jobs`: unknown key"),
            ("settings.builder.timeout = \"a while\"", "`builder.timeout`: \"a while\" is not a time"),
            ("projects.shop.repo_ulr = \"x\"", "`projects.shop.repo_ulr`: unknown key; did you mean `repo_url`?"),
            ("projects.shop.secrets.production.KEY.file = \"/x\"", "`projects.shop.secrets.production`: unknown key"),
            ("projects.Shop_2 = files.project", "`projects.Shop_2`: is not a name"),
        ] {
            let body = format!(
                "let files.project = {{ repo_url = \"https://x.example/y\"; repo_type = \"github\"; \
                 webhook_secret_file = \"/x\"; }}; in configFile [ {SOURCE}/nixos-module/tests/minimal.nix \
                 {{ services.kennel = {{ {mistake}; }}; }} ]"
            );
            let built = build(&lib, &body).await;
            assert!(!built.status.success(), "`{mistake}` was built over {lib}");
            assert!(said(&built).contains(words), "`{mistake}` says\n{}", said(&built));
        }
    }
}

#[tokio::test]
async fn what_is_missing_or_unsafe_is_refused_with_what_to_set() {
    let cases = [
        ("services.kennel.settings.base_domain = lib.mkForce null", "Set it to the domain your projects lie under"),
        ("services.kennel.projects.new = { }", "services.kennel.projects.new.repo_url is not set. Set it, such as to"),
        ("services.kennel.projects.new = { }", "services.kennel.projects.new.webhook_secret_file is not set. Set it"),
        ("services.kennel.settings.projects.new.x = 1", "Set services.kennel.projects instead"),
        ("nix.enable = false", "Set nix.enable = true"),
        ("nix.settings.sandbox = false", "Set nix.settings.sandbox = true"),
        ("nix.settings.trusted-users = [ \"@kennel-build\" ]", "\"kennel-build\" and \"@kennel-build\" out"),
        ("services.nginx.enable = true", "Set services.kennel.settings.router.http = \"127.0.0.1:8080\""),
        (
            "services.kennel.valkey.createLocally = true; services.kennel.settings.valkey.url_file = \"/x\"",
            "Set services.kennel.valkey.createLocally = false",
        ),
        (
            "services.kennel.postgresql.createLocally = true; services.kennel.settings.postgres.url_file = \"/x\"",
            "Set services.kennel.postgresql.createLocally = false",
        ),
        (
            "services.kennel.valkey.createLocally = true; services.redis.servers.other.enable = true",
            "Set services.redis.package to pkgs.valkey",
        ),
        ("services.kennel.settings.api.token_file = ./default.nix", "not in the Nix store"),
        (
            "services.kennel.projects.shop.git_token_file = \"${builtins.storeDir}/00000000000000000000000000000000-x\"",
            "not in the Nix store",
        ),
        ("services.kennel.projects.shop.secrets.prod.KEY = \"hush\"", "is not of type"),
    ];
    for lib in libs() {
        for (mistake, words) in cases {
            let body = format!(
                "builtins.toJSON (checked [ {SOURCE}/nixos-module/tests/minimal.nix {{ {mistake}; }} ]).services.kennel"
            );
            let evaluated = evaluate(&lib, &body).await;
            assert!(!evaluated.status.success(), "`{mistake}` was accepted over {lib}");
            assert!(said(&evaluated).contains(words), "`{mistake}` over {lib} says\n{}", said(&evaluated));
        }
        let chosen = "checked [ files.minimal { services.kennel.valkey.createLocally = true; \
            services.redis.package = pkgs.redis; services.redis.servers.other.enable = true; } ]";
        let chosen = evaluate(&lib, &format!("({chosen}).services.redis.package.name")).await;
        assert_eq!(succeeded(&chosen), "redis", "what the operator chose stays");
    }
}

#[tokio::test]
async fn what_the_pages_have_one_paste_evaluates() {
    let [readme, guide] = ["README.md", "docs/nixos.md"].map(|page| {
        let page = fs::read_to_string(Path::new(SOURCE).join(page)).unwrap();
        let blocks = page.split("```nix\n").skip(1).filter_map(|block| block.split("```").next());
        blocks.map(str::to_owned).collect::<Vec<_>>()
    });
    assert!(readme.len() == 1 && guide.len() > 5, "they show configurations");
    let blocks = [readme, guide].concat();
    let dir = Path::new("/tmp/guide");
    fs::create_dir_all(dir.join("secrets")).unwrap();
    for name in ["github-known-hosts", "secrets/shop-webhook.age", "secrets/shop-jwt.age"] {
        fs::write(dir.join(name), "").unwrap();
    }
    let base = "{ services.kennel.enable = true; services.kennel.settings.base_domain = lib.mkDefault \"example.com\"; \
        services.kennel.projects.shop = builtins.mapAttrs (_: lib.mkDefault) { repo_type = \"forgejo\"; \
        repo_url = \"https://forge.example.com/me/shop.git\"; webhook_secret_file = \"/x\"; }; }";
    for (n, block) in blocks.iter().enumerate() {
        let file = dir.join(format!("{n}.nix")).display().to_string();
        fs::write(&file, block).unwrap();
        machine::ok("nix-instantiate", &["--parse", &file]).await;
        if block.contains("inputs.") || block.contains("imports = ") {
            continue;
        }
        // Those that enable it are all one needs.
        let modules = if block.contains("enable = true;\n    open") { file } else { format!("({base}) {file}") };
        let built = build("{ }", &format!("configFile [ {modules} ]")).await;
        assert!(built.status.success(), "{}\n{block}", said(&built));
    }
}

#[tokio::test]
async fn only_a_changed_project_is_a_reload() {
    for lib in libs() {
        let triggers = async |change: &str| {
            let body = format!(
                "builtins.toJSON (let u = (checked [ files.minimal {{ services.kennel = {{ {change} }}; }} ])\
                 .systemd.services.kennel; in [ u.restartTriggers (map toString u.reloadTriggers) ])"
            );
            let triggers: [Value; 2] = serde_json::from_str(&succeeded(&evaluate(&lib, &body).await)).unwrap();
            triggers
        };
        let before = triggers("").await;
        let project = triggers("projects.shop.pull_requests = false;").await;
        assert_eq!(project[0], before[0]);
        assert_ne!(project[1], before[1]);
        assert_ne!(triggers("settings.router.http = \"0.0.0.0:81\";").await[0], before[0]);
    }
}

#[tokio::test]
async fn the_options_page_is_what_the_module_says() {
    let page = fs::read_to_string(Path::new(SOURCE).join("docs/options.md")).unwrap();
    for lib in libs() {
        let module = succeeded(&evaluate(&lib, "optionsPage").await);
        assert!(module == page, "docs/options.md is stale over {lib}: run tests/nix/renew");
    }
}

#[tokio::test]
async fn the_flake_passes_its_checks_and_its_template_builds() {
    let (flake, project) = ("/tmp/flake", "/tmp/project");
    for dir in [flake, project] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).unwrap();
    }
    // Nix would copy what cargo built along with the rest.
    let copy = format!("cd {SOURCE} && tar -c --exclude=./target --exclude=./.git . | tar -x -C {flake}");
    machine::ok("sh", &["-c", &copy]).await;
    let standin = format!("path:{flake}/tests/nix");
    let over = ["--override-input", "nixpkgs", &standin, "--no-write-lock-file"];
    let reference = |name: &str| format!("path:{flake}#{name}");

    succeeded(&nix(&[&["flake", "check", &format!("path:{flake}")], &over[..]].concat()).await);
    for system in ["x86_64-linux", "aarch64-linux"] {
        for attribute in ["default", "kennel"] {
            let name = reference(&format!("packages.{system}.{attribute}.name"));
            let name = succeeded(&nix(&[&["eval", "--raw", &name], &over[..]].concat()).await);
            assert_eq!(name, format!("kennel-{}", env!("CARGO_PKG_VERSION")));
        }
    }
    let version =
        succeeded(&nix(&[&["run", &format!("path:{flake}")], &over[..], &["--", "--version"]].concat()).await);
    assert_eq!(version.trim(), format!("kennel {}", env!("CARGO_PKG_VERSION")));
    let link = ["build", "--no-link", "--print-out-paths", &reference("kennel")];
    let package = path(&nix(&[&link[..], &over[..]].concat()).await);
    let unit = fs::read_to_string(package.join("lib/systemd/system/kennel.service")).unwrap();
    assert!(unit.contains(&format!("ExecStart={}/bin/kennel daemon", package.display())), "{unit}");
    assert!(!unit.contains("=kill") && !unit.contains("/usr/"), "{unit}");
    assert!(package.join("share/man/man1/kennel-deploy.1").exists(), "man pages are installed");

    let init = format!("cd {project} && nix flake init --template path:{flake}");
    machine::ok("sh", &["-c", &init]).await;
    machine::ok("kennel", &["check", &format!("{project}/kennel.toml")]).await;
    let attributes = [format!("path:{project}#api"), format!("path:{project}#web")];
    let outputs = ["build", "--no-link", "--print-out-paths", &attributes[0], &attributes[1]];
    let built = succeeded(&nix(&[&outputs[..], &over[..]].concat()).await);
    let built: Vec<_> = built.lines().map(Path::new).collect();
    assert!(built[0].join("bin/api").exists() && built[1].join("index.html").exists(), "{built:?}");
    let locked = |dir: &str| fs::read_to_string(format!("{dir}/flake.lock")).unwrap();
    assert_eq!(locked(flake), locked(project), "the template begins with the nixpkgs kennel is tested with");
}
