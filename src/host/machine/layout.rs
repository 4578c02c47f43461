//! Where on this machine everything lies, and which unit names are kennel's own.
//!
//! **Invariant:** every path is made of checked names; none comes from a repository.

use std::path::{Path, PathBuf};

use crate::host::{BuildPhase, SiteLink};
use crate::model::{BranchSlug, BuildId, DeploymentId, ProjectName, ServiceName, UnitName};

/// systemd keeps the data of services with a dynamic user here, and a link to it in `/var/lib`
/// (`systemd.exec(5)`, `DynamicUser=`).
const PRIVATE: &str = "/var/lib/private";
/// Where `StateDirectory=` begins (`systemd.exec(5)`).
const STATE_BASE: &str = "/var/lib";

/// The directories kennel keeps things in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What outlives a reboot, such as `/var/lib/kennel`.
    pub state_dir: PathBuf,
    /// What does not, such as `/run/kennel`.
    pub run_dir: PathBuf,
    /// Where systemd finds the units of deployments, such as `/run/systemd/system`.
    pub unit_dir: PathBuf,
}

/// A directory that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("directory {path:?} {problem}")]
pub struct BadLayout {
    path: PathBuf,
    problem: &'static str,
}

/// A unit name of kennel's own making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnUnit {
    /// A version of a service.
    Deployment(DeploymentId),
    /// One half of a build.
    Build(BuildId, BuildPhase),
}

impl OwnUnit {
    /// What the name stands for, or `None` when kennel makes no such name.
    #[must_use]
    pub fn of(unit: &UnitName) -> Option<Self> {
        let stem = unit.as_str().strip_prefix("kennel-")?.strip_suffix(".service")?;
        if let Some((tag, id)) = stem.rsplit_once('@') {
            let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
            return (!tag.is_empty() && tag.bytes().all(plain))
                .then(|| Some(Self::Deployment(DeploymentId(number(id)?))))
                .flatten();
        }
        let build = |text, phase| Some(Self::Build(BuildId(number(text)?), phase));
        match stem.split_once('-')? {
            ("fetch", id) => build(id, BuildPhase::Fetch),
            ("build", id) => build(id, BuildPhase::Build),
            _ => None,
        }
    }
}

/// A row's number as kennel writes it: no sign, no leading zero.
fn number(text: &str) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    (number >= 0 && number.to_string() == text).then_some(number)
}

impl Layout {
    /// Checks that systemd will take these paths as they are.
    ///
    /// # Errors
    /// When one is not absolute, holds a character that units would read as something else, or when
    /// the state directory does not lie where `StateDirectory=` puts the services' data.
    pub fn check(&self) -> Result<(), BadLayout> {
        let bad = |path: &Path, problem| Err(BadLayout { path: path.to_owned(), problem });
        for path in [&self.state_dir, &self.run_dir, &self.unit_dir] {
            let text = path.to_str().unwrap_or_default();
            if !text.starts_with('/') || text.len() < 2 || text.ends_with('/') {
                return bad(path, "is not an absolute path without a `/` at its end");
            }
            if text.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
                return bad(path, "has an empty part, `.` or `..`");
            }
            if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.-".contains(&b)) {
                return bad(path, "may hold only letters, digits and `/_.-`");
            }
        }
        match self.state_dir.strip_prefix(STATE_BASE) {
            Ok(rest) if rest != Path::new("") && !rest.starts_with("private") => Ok(()),
            _ => bad(&self.state_dir, "does not lie below `/var/lib`, where systemd keeps the data of services"),
        }
    }

    /// The state directory as `StateDirectory=` wants it.
    fn state_name(&self) -> &Path {
        self.state_dir.strip_prefix(STATE_BASE).unwrap_or(Path::new("kennel"))
    }

    /// A deployment's unit file.
    #[must_use]
    pub fn unit_file(&self, unit: &UnitName) -> PathBuf {
        self.unit_dir.join(unit.as_str())
    }

    /// Where environment files lie.
    #[must_use]
    pub fn secrets_dir(&self) -> PathBuf {
        self.run_dir.join("secrets")
    }

    /// A deployment's environment file: the unit's name without `kennel-`.
    #[must_use]
    pub fn env_file(&self, unit: &UnitName) -> PathBuf {
        let stem = unit.as_str().strip_suffix(".service").unwrap_or(unit.as_str());
        self.secrets_dir().join(format!("{}.env", stem.strip_prefix("kennel-").unwrap_or(stem)))
    }

    /// The unit an environment file belongs to: [`Self::env_file`], backwards.
    #[must_use]
    pub fn unit_of_env_file(name: &str) -> Option<UnitName> {
        format!("kennel-{}.service", name.strip_suffix(".env")?).parse().ok()
    }

    /// A service's data directory, relative to `/var/lib`.
    #[must_use]
    pub fn state_directory(&self, project: &ProjectName, slug: &BranchSlug, service: &ServiceName) -> PathBuf {
        self.state_name().join("services").join(project.as_str()).join(slug.as_str()).join(service.as_str())
    }

    /// A service's data directory as it sees it: a link that systemd makes.
    #[must_use]
    pub fn data_dir(&self, project: &ProjectName, slug: &BranchSlug, service: &ServiceName) -> PathBuf {
        Path::new(STATE_BASE).join(self.state_directory(project, slug, service))
    }

    /// Where a service's data really lies.
    #[must_use]
    pub fn private_data_dir(&self, project: &ProjectName, slug: &BranchSlug, service: &ServiceName) -> PathBuf {
        Path::new(PRIVATE).join(self.state_directory(project, slug, service))
    }

    /// The top of all data directories, as services see them and as they are.
    #[must_use]
    pub fn services_dirs(&self) -> [PathBuf; 2] {
        [STATE_BASE, PRIVATE].map(|base| Path::new(base).join(self.state_name()).join("services"))
    }

    /// Where removed data waits: in the state directory, or beside the data when that is another file system.
    #[must_use]
    pub fn trash_dirs(&self) -> [PathBuf; 2] {
        [self.state_dir.join("trash"), Path::new(PRIVATE).join(self.state_name()).join("trash")]
    }

    /// The top of all links to static sites.
    #[must_use]
    pub fn sites_dir(&self) -> PathBuf {
        self.state_dir.join("sites")
    }

    /// A static site's link.
    #[must_use]
    pub fn site_link(&self, link: &SiteLink) -> PathBuf {
        self.sites_dir().join(link.project.as_str()).join(link.slug.as_str()).join(link.site.as_str())
    }

    /// Where roots lie.
    #[must_use]
    pub fn gc_roots_dir(&self) -> PathBuf {
        self.state_dir.join("gcroots")
    }

    /// An artifact's root.
    #[must_use]
    pub fn gc_root(&self, build: BuildId, name: &ServiceName) -> PathBuf {
        self.gc_roots_dir().join(format!("{build}-{name}"))
    }

    /// Where builds work.
    #[must_use]
    pub fn work_dirs(&self) -> PathBuf {
        self.state_dir.join("work")
    }

    /// A build's work directory.
    #[must_use]
    pub fn work_dir(&self, build: BuildId) -> PathBuf {
        self.work_dirs().join(build.to_string())
    }

    /// Where builds log.
    #[must_use]
    pub fn log_dirs(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// A build's log directory.
    #[must_use]
    pub fn log_dir(&self, build: BuildId) -> PathBuf {
        self.log_dirs().join(build.to_string())
    }
}

/// The file in the work directory that the worker writes at the end of one half.
#[must_use]
pub fn report_name(phase: BuildPhase) -> &'static str {
    match phase {
        BuildPhase::Fetch => "fetch.json",
        BuildPhase::Build => "build.json",
    }
}

/// Build and name of a root, from its file's name: [`Layout::gc_root`], backwards.
#[must_use]
pub fn gc_root_of(file_name: &str) -> Option<(BuildId, ServiceName)> {
    let (build, name) = file_name.split_once('-')?;
    Some((BuildId(number(build)?), name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitName {
        name.parse().unwrap()
    }

    #[test]
    fn only_names_of_kennels_making_are_its_own() {
        let own = |name: &str| OwnUnit::of(&unit(name));
        assert_eq!(own("kennel-p-main-api@12.service"), Some(OwnUnit::Deployment(DeploymentId(12))));
        assert_eq!(own("kennel-build-3.service"), Some(OwnUnit::Build(BuildId(3), BuildPhase::Build)));
        assert_eq!(own("kennel-fetch-3.service"), Some(OwnUnit::Build(BuildId(3), BuildPhase::Fetch)));
        assert_eq!(own("kennel-build-x@3.service"), Some(OwnUnit::Deployment(DeploymentId(3))));
        for other in [
            "kennel.service",
            "kennel-build-.service",
            "kennel-build-03.service",
            "kennel-build--3.service",
            "kennel-p@.service",
            "kennel-p@1x.service",
            "kennel-@1.service",
            "kennel-P@1.service",
            "kennel-a@b@1.service",
            "sshd.service",
            "dev-kennel-build-3.service",
        ] {
            assert_eq!(own(other), None, "{other}");
        }
    }

    #[test]
    fn names_of_files_lead_back_to_what_they_belong_to() {
        let layout = Layout {
            state_dir: "/var/lib/kennel".into(),
            run_dir: "/run/kennel".into(),
            unit_dir: "/run/systemd/system".into(),
        };
        let unit = unit("kennel-p-main-api@12.service");
        let file = layout.env_file(&unit);
        assert_eq!(file, Path::new("/run/kennel/secrets/p-main-api@12.env"));
        assert_eq!(Layout::unit_of_env_file("p-main-api@12.env"), Some(unit));
        let name: ServiceName = "a-1".parse().unwrap();
        assert_eq!(layout.gc_root(BuildId(7), &name), Path::new("/var/lib/kennel/gcroots/7-a-1"));
        assert_eq!(gc_root_of("7-a-1"), Some((BuildId(7), name)));
    }

    #[test]
    fn a_state_directory_that_systemd_cannot_use_is_refused() {
        let layout = |state: &str| Layout {
            state_dir: state.into(),
            run_dir: "/run/kennel".into(),
            unit_dir: "/run/systemd/system".into(),
        };
        assert_eq!(layout("/var/lib/kennel").check(), Ok(()));
        assert_eq!(layout("/var/lib/apps/kennel").check(), Ok(()));
        for bad in ["/srv/kennel", "var/lib/kennel", "/var/lib", "/var/lib/private/x", "/var/lib/a b", "/var/lib/../x"]
        {
            assert!(layout(bad).check().is_err(), "{bad}");
        }
    }
}
