//! systemd, its control groups, and the clock it keeps.

use std::path::Path;

use ::nix::errno::Errno;
use ::nix::unistd::{AccessFlags, access};
use tokio::time::timeout;
use zbus::{Connection, Proxy};

use super::finding::Finding;
use super::{LOOK_MAX, Subject};

/// The first version with `PrivatePIDs=`, which build units ask for.
const OLDEST: u32 = 257;
/// It exists when all controllers are in one hierarchy (`cgroups(7)`).
const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";

/// Checks what units need.
pub(super) async fn check(subject: &Subject) -> Vec<Finding> {
    let told = timeout(LOOK_MAX, manager()).await.unwrap_or_else(|_| Err("systemd does not answer".to_owned()));
    let writable = access(&subject.unit_dir, AccessFlags::W_OK);
    let (version, searched) = match told {
        Ok((version, searched)) => (Ok(version), searched),
        Err(why) => (Err(why), Vec::new()),
    };
    vec![
        judge_version(version.as_deref().map_err(String::as_str)),
        judge_unit_dir(&subject.unit_dir, writable, &searched),
        judge_control_groups(Path::new(UNIFIED).exists()),
    ]
}

/// Checks whether the clock is right.
pub(super) async fn clock() -> Vec<Finding> {
    let asked = async {
        let bus = Connection::system().await?;
        let dated =
            Proxy::new(&bus, "org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1");
        dated.await?.get_property::<bool>("NTPSynchronized").await
    };
    let synchronised = match timeout(LOOK_MAX, asked).await {
        Ok(answer) => answer.map_err(|err: zbus::Error| err.to_string()),
        Err(_) => Err("systemd-timedated does not answer".to_owned()),
    };
    vec![judge_clock(synchronised)]
}

/// systemd's version, and where it looks for units.
async fn manager() -> Result<(String, Vec<String>), String> {
    let asked = async {
        let bus = Connection::system().await?;
        let manager = Proxy::new(
            &bus,
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
        )
        .await?;
        let version = manager.get_property::<String>("Version").await?;
        Ok((version, manager.get_property::<Vec<String>>("UnitPath").await?))
    };
    asked.await.map_err(|err: zbus::Error| err.to_string())
}

fn judge_version(version: Result<&str, &str>) -> Finding {
    let check = "systemd";
    let version = match version {
        Ok(version) => version,
        Err(why) => {
            let advice = "start the system bus: `systemctl status dbus.socket` tells more";
            return Finding::failure(check, format!("systemd cannot be asked: {why}"), advice);
        }
    };
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(number) if number >= OLDEST => Finding::ok(check, format!("version {version}")),
        Ok(_) => Finding::failure(
            check,
            format!(
                "version {version} does not know `PrivatePIDs=`: build units, which hide from each other with it, do \
                 not start"
            ),
            format!("upgrade to systemd {OLDEST} or later"),
        ),
        Err(_) => Finding::warning(
            check,
            format!("it calls its version `{version}`"),
            format!("make sure that it is {OLDEST} or later"),
        ),
    }
}

fn judge_unit_dir(dir: &Path, writable: Result<(), Errno>, searched: &[String]) -> Finding {
    let (check, shown) = ("unit directory", dir.display());
    let advice = "set `unit_dir = \"/run/systemd/system\"` in `[systemd]` of the daemon's file";
    match writable {
        Err(Errno::EROFS) => return Finding::failure(check, format!("`{shown}` is read-only"), advice),
        Err(Errno::ENOENT) => return Finding::failure(check, format!("`{shown}` does not exist"), advice),
        Err(errno) => {
            return Finding::failure(check, format!("`{shown}` cannot be written: {}", errno.desc()), advice);
        }
        Ok(()) => {}
    }
    if !searched.is_empty() && !searched.iter().any(|place| Path::new(place) == dir) {
        return Finding::failure(check, format!("systemd does not look for units in `{shown}`"), advice);
    }
    Finding::ok(check, format!("`{shown}` can be written"))
}

fn judge_control_groups(unified: bool) -> Finding {
    let check = "control groups";
    if unified {
        return Finding::ok(check, "version 2");
    }
    Finding::warning(
        check,
        "version 1: limits of memory and of ports are asked for and not enforced",
        "boot with `systemd.unified_cgroup_hierarchy=1`",
    )
}

fn judge_clock(synchronised: Result<bool, String>) -> Finding {
    let check = "clock";
    match synchronised {
        Ok(true) => Finding::ok(check, "synchronised"),
        Ok(false) => Finding::warning(
            check,
            "it is not synchronised: certificates and times of builds may be wrong",
            "`timedatectl set-ntp true`, or look after the time service this host uses",
        ),
        Err(why) => Finding::warning(
            check,
            format!("nobody tells whether it is synchronised: {why}"),
            "compare `date` with a clock that is right",
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::finding::Level;
    use super::*;

    #[rstest]
    #[case(Ok("257.9-1~deb13u1"), Level::Ok)]
    #[case(Ok("258"), Level::Ok)]
    #[case(Ok("256.12"), Level::Failure)]
    #[case(Ok("v260"), Level::Warning)]
    #[case(Err("no bus"), Level::Failure)]
    fn systemd_must_know_how_to_hide_builds(#[case] version: Result<&str, &str>, #[case] level: Level) {
        assert_eq!(judge_version(version).level, level);
    }

    #[rstest]
    #[case(Ok(()), &["/etc/systemd/system", "/run/systemd/system"], Level::Ok)]
    #[case(Ok(()), &[], Level::Ok)]
    #[case(Ok(()), &["/etc/systemd/system"], Level::Failure)]
    #[case(Err(Errno::EROFS), &["/run/systemd/system"], Level::Failure)]
    #[case(Err(Errno::ENOENT), &["/run/systemd/system"], Level::Failure)]
    fn units_must_be_written_where_systemd_finds_them(
        #[case] writable: Result<(), Errno>,
        #[case] searched: &[&str],
        #[case] level: Level,
    ) {
        let searched: Vec<String> = searched.iter().map(|&place| place.to_owned()).collect();
        assert_eq!(judge_unit_dir(Path::new("/run/systemd/system"), writable, &searched).level, level);
    }

    #[test]
    fn a_host_that_enforces_less_or_drifts_is_warned_of() {
        assert_eq!(judge_control_groups(true).level, Level::Ok);
        assert_eq!(judge_control_groups(false).level, Level::Warning);
        assert_eq!(judge_clock(Ok(true)).level, Level::Ok);
        assert_eq!(judge_clock(Ok(false)).level, Level::Warning);
        assert_eq!(judge_clock(Err("no such service".to_owned())).level, Level::Warning);
    }
}
