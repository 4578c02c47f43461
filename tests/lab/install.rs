//! Installation by hand: the commands of docs/install.md, followed to the letter.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use http::Method;

use crate::harness::http::{request, send};
use crate::harness::{App, Lab, LabConfig, ProjectSpec, Style, api, delivery, machine, split};

const PAGE: &str = "/lab/source/docs/install.md";
/// Where the page has kennel listen for visitors.
const PORT_80: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);
/// A checkout in which cargo has built kennel.
const CHECKOUT: &str = "/tmp/checkout";

/// The commands of the page, block by block.
fn blocks(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().expect("a block ends").to_owned()).collect()
}

/// The lab brings kennel as mounts, and its users with its root: the page is for a machine that has neither.
async fn forget_kennel() {
    for mount in ["/usr/bin/kennel", "/etc/systemd/system/kennel.service"] {
        if machine::run("mountpoint", &["--quiet", mount]).await.status.success() {
            machine::ok("umount", &[mount]).await;
        }
    }
    split::remove().await;
    machine::ok("userdel", &["kennel-build"]).await;
    // The group goes with the user whose it is.
    if !machine::run("userdel", &[split::USER]).await.status.success() {
        machine::ok("groupdel", &["kennel"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_debian_leads_to_a_live_service() {
    let lab = Lab::prepare(LabConfig::of([ProjectSpec::new("shop")])).await;
    fs::create_dir_all(format!("{CHECKOUT}/target/release")).unwrap();
    fs::copy("/usr/bin/kennel", format!("{CHECKOUT}/target/release/kennel")).unwrap();
    machine::ok("cp", &["-r", "/lab/source/systemd", CHECKOUT]).await;
    forget_kennel().await;
    fs::remove_dir_all("/etc/kennel").unwrap();

    let page = fs::read_to_string(PAGE).unwrap();
    let url = "https://forge.example.com/me/shop.git";
    assert!(page.contains(url), "the page has a repository to be replaced");
    for block in blocks(&page.replace(url, &lab.forge.url("shop"))) {
        if let Some(packages) = block.trim().strip_prefix("apt-get install --yes ") {
            // Nothing can be fetched here; the root has them.
            machine::ok("dpkg", &[&["--status"], &packages.split(' ').collect::<Vec<_>>()[..]].concat()).await;
            continue;
        }
        machine::ok("bash", &["-euc", &format!("cd {CHECKOUT}\n{block}")]).await;
    }

    let secret = fs::read_to_string("/etc/kennel/shop-webhook").unwrap();
    let commit = lab.repo("shop").commit("main", &App::api("one").files(), "Begin");
    lab.repo("shop").push("main", &commit);
    let payload = delivery::push("shop", "main", None, &commit);
    let answer = api::deliver(&Style::Forgejo.delivery("shop", secret.trim_end(), "push", &payload)).await.expect(202);
    let build = answer.json::<serde_json::Value>()["build"].as_i64().unwrap();
    let live = lab.live(build, "api").await;
    assert_eq!(live.host, "api-main.shop.example.com");
    let visit = send(PORT_80, request(Method::GET, &live.host, "/", "")).await.unwrap().expect(200);
    assert_eq!(visit.json::<serde_json::Value>()["version"], "one");
    assert!(Path::new("/etc/systemd/system/multi-user.target.wants/kennel.service").exists(), "it starts at boot");
    assert!(Path::new("/etc/systemd/system/sockets.target.wants/kennel.socket").exists(), "its sockets before it");
    assert_eq!(machine::property("kennel.socket", "SubState").await, "running");
    let daemon = machine::main_pid("kennel.service").await;
    assert_eq!(machine::ok("stat", &["--format=%U", &format!("/proc/{daemon}")]).await.trim(), split::USER);
    let doctor = machine::run("kennel", &["doctor"]).await;
    let said = machine::text(&doctor.stdout);
    assert!(said.contains("root's or the daemon's alone"), "{said}");
    assert!(
        !lab.journal().await.contains("kennel.socket holds"),
        "kennel's file and its sockets name the same addresses"
    );
    assert_eq!(machine::property("nix-daemon.service", "ControlGroup").await, "/builds.slice/nix-daemon.service");
    assert_eq!(machine::property("builds.slice", "CPUWeight").await, "50");
    lab.finish().await;

    // The tests after this one want Nix's daemon where it was, and no kennel that starts by itself.
    machine::ok("systemctl", &["disable", "--now", "kennel.socket", "kennel-host.socket", "kennel.service"]).await;
    split::remove().await;
    fs::remove_file("/etc/systemd/system/kennel.socket").unwrap();
    fs::remove_file("/etc/systemd/system/builds.slice").unwrap();
    fs::remove_dir_all("/etc/systemd/system/nix-daemon.service.d").unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    machine::ok("systemctl", &["restart", "nix-daemon.service"]).await;
}
