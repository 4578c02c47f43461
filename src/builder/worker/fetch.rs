//! Gets exactly one commit, with as little of its history as the forge allows.
//!
//! The ways are tried in turn: the commit by its id, the end of its branch, all of its branch, the git command.
//!
//! **Invariant:** no hook, filter or checkout runs. Nix reads the commit from `.git`, so no work tree is made.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, ErrorClass, ErrorCode, FetchOptions, ObjectType, Oid,
    ProxyOptions, RemoteCallbacks, RemoteRedirect, Repository, RepositoryInitOptions, cert::Cert,
};
use tokio::runtime::Runtime;

use super::credentials::Credentials;
use super::known_hosts::{Verdict, file_name_of};
use super::log::{LogFile, reason};
use super::remote::{Remote, Transport};
use super::{Dirs, FetchReport, git};
use crate::host::{BuildJob, REPO_URL};

/// How often a server may ask for credentials. libgit2 itself asks for ever.
const TRIES: u32 = 4;
/// The largest pack that is taken.
const RECEIVED_MAX: usize = 4 << 30;
/// How much of a branch is fetched before all of it is.
const BRANCH_DEPTH: i32 = 50;

/// Why a commit was not fetched.
#[derive(Debug)]
pub(super) enum Stop {
    /// The forge will not give it, or the operator must change something: the end of this build.
    Refused(String),
    /// The network or the machine failed: worth another try.
    Machine(anyhow::Error),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::Machine(err) => write!(f, "{err:#}"),
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(err: anyhow::Error) -> Self {
        Self::Machine(err)
    }
}

/// Fetches the commit of `job` into the work directory.
pub(super) fn run(dirs: &Dirs, job: &BuildJob, runtime: &Runtime) -> anyhow::Result<FetchReport> {
    // The job lies where builds can write; the operator's credentials are for the operator's address alone.
    if let Some(bound) = std::env::var_os(REPO_URL)
        && bound != *job.repo_url
    {
        return Err(anyhow!("the job is to fetch from {:?}, and its credentials are for {bound:?}", job.repo_url));
    }
    run_with(dirs, job, runtime, &Credentials::of_unit()?)
}

/// As [`run`], with these credentials.
pub(super) fn run_with(
    dirs: &Dirs,
    job: &BuildJob,
    runtime: &Runtime,
    credentials: &Credentials,
) -> anyhow::Result<FetchReport> {
    let started = Instant::now();
    let mut log = LogFile::open(&dirs.log("fetch"), job.log_limit_bytes)?;
    let clean = |text: &str| match Remote::parse(&job.repo_url) {
        Ok(remote) => remote.without_password(&credentials.without_secrets(text)),
        Err(_) => credentials.without_secrets(text),
    };
    log.say(&format!("Fetching {} from {}", job.commit, clean(&job.repo_url)))?;
    match fetch(dirs, job, runtime, credentials, &mut log) {
        Ok(()) => {
            let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            log.say(&format!("Fetched in {duration_ms} ms"))?;
            Ok(FetchReport::Fetched { duration_ms })
        }
        Err(Stop::Refused(why)) => {
            let reason = clean(&reason(&why));
            log.say(&format!("Failed: {reason}"))?;
            Ok(FetchReport::Failed { reason })
        }
        Err(Stop::Machine(err)) => {
            let text = clean(&format!("{err:#}"));
            log.say(&format!("Failed, and worth another try: {text}"))?;
            Err(anyhow!(text))
        }
    }
}

/// What to ask the server for.
#[derive(Debug, Clone, Copy)]
enum Way {
    Commit,
    BranchEnd,
    Branch,
}

fn fetch(
    dirs: &Dirs,
    job: &BuildJob,
    runtime: &Runtime,
    credentials: &Credentials,
    log: &mut LogFile,
) -> Result<(), Stop> {
    let remote = Remote::parse(&job.repo_url).map_err(Stop::Refused)?;
    let oid = job.commit.as_str().parse::<Oid>().map_err(|_| {
        Stop::Refused(format!("the commit `{}` is a SHA-256 one, which this version cannot fetch", job.commit))
    })?;
    if remote.transport == Transport::Ssh && credentials.known_hosts.is_none() {
        return Err(Stop::Refused(format!(
            "the host key of `{}` is not pinned\nhint: set `known_hosts_file` for the project",
            file_name_of(&remote.host, remote.port)
        )));
    }
    credentials.show_known_hosts(&dirs.work)?;
    let checkout = dirs.checkout();
    let mut last = None;
    for way in [Way::Commit, Way::BranchEnd, Way::Branch] {
        let repository = new_repository(&checkout)?;
        let attempt = Attempt { remote: &remote, credentials, log: RefCell::new(log), state: State::default() };
        let problem = match attempt.fetch(&repository, job, way).and_then(|()| has_commit(&repository, oid)) {
            Ok(true) => return Ok(()),
            Ok(false) => Stop::Refused(missing(job)),
            Err(err) => attempt.judge(&err)?,
        };
        log.say(&format!("{way:?}: {problem}")).context("cannot write the log")?;
        last = Some(problem);
    }
    let problem = match last {
        Some(Stop::Machine(err)) => return Err(Stop::Machine(err)),
        Some(Stop::Refused(problem)) => problem,
        None => missing(job),
    };
    let repository = new_repository(&checkout)?;
    match runtime.block_on(git::fetch(&checkout, job, &remote, credentials, log))? {
        git::Outcome::Fetched if has_commit(&repository, oid).context("cannot look at what git fetched")? => Ok(()),
        git::Outcome::Fetched => Err(Stop::Refused(missing(job))),
        git::Outcome::Absent => Err(Stop::Refused(problem)),
        git::Outcome::Failed(said) => Err(Stop::Refused(format!("{problem}\n{said}"))),
    }
}

fn missing(job: &BuildJob) -> String {
    format!("the forge does not give the commit `{}`, by itself or on `{}`", job.commit, job.remote_ref)
}

/// An empty repository in the place of whatever was there.
fn new_repository(checkout: &Path) -> anyhow::Result<Repository> {
    match fs::remove_dir_all(checkout) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("cannot empty `{}`", checkout.display()));
        }
        _ => {}
    }
    let mut options = RepositoryInitOptions::new();
    // No template: it may hold hooks.
    options.no_reinit(true).external_template(false).initial_head("main");
    Repository::init_opts(checkout, &options).with_context(|| format!("cannot make `{}`", checkout.display()))
}

/// Whether the very commit is there; an object of that id that is none is an error.
fn has_commit(repository: &Repository, oid: Oid) -> Result<bool, git2::Error> {
    match repository.odb()?.read_header(oid) {
        Ok((_, ObjectType::Commit)) => Ok(true),
        Ok((_, kind)) => Err(git2::Error::new(
            ErrorCode::Invalid,
            ErrorClass::Object,
            format!("`{oid}` is a {}, not a commit", kind.str()),
        )),
        Err(err) if err.code() == ErrorCode::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

/// One try at a fetch.
struct Attempt<'a> {
    remote: &'a Remote,
    credentials: &'a Credentials,
    log: RefCell<&'a mut LogFile>,
    state: State,
}

/// What the callbacks found out, which libgit2's error does not tell.
#[derive(Default)]
struct State {
    tries: Cell<u32>,
    refusal: RefCell<Option<String>>,
}

impl Attempt<'_> {
    fn fetch(&self, repository: &Repository, job: &BuildJob, way: Way) -> Result<(), git2::Error> {
        let (refspec, depth) = match way {
            Way::Commit => (format!("+{}:refs/kennel/commit", job.commit), 1),
            Way::BranchEnd => (format!("+{}:refs/kennel/branch", job.remote_ref), BRANCH_DEPTH),
            Way::Branch => (format!("+{}:refs/kennel/branch", job.remote_ref), 0),
        };
        let mut options = FetchOptions::new();
        options.remote_callbacks(self.callbacks()).proxy_options(proxy());
        options.download_tags(AutotagOption::None).follow_redirects(RemoteRedirect::None).update_fetchhead(false);
        // libgit2 cannot fetch a part of a repository on this machine.
        if self.remote.transport != Transport::File {
            options.depth(depth);
        }
        repository.remote_anonymous(&self.remote.url)?.fetch(&[&refspec], Some(&mut options), None)
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(|url, user, allowed| self.credential(url, user, allowed));
        callbacks.certificate_check(|cert, _host| self.check_host(cert));
        let mut told = Instant::now();
        callbacks.transfer_progress(move |progress| {
            if progress.received_bytes() > RECEIVED_MAX {
                self.refuse(format!("the repository is larger than {} GiB", RECEIVED_MAX >> 30));
                return false;
            }
            let (received, total) = (progress.received_objects(), progress.total_objects());
            if told.elapsed().as_secs() == 0 && received != total {
                return true;
            }
            told = Instant::now();
            let kib = progress.received_bytes() >> 10;
            received == total || self.say(&format!("Received {received} of {total} objects, {kib} KiB"))
        });
        callbacks.sideband_progress(|text| {
            let text = String::from_utf8_lossy(text);
            text.split(['\r', '\n']).filter(|line| !line.is_empty()).all(|line| self.say(&format!("remote: {line}")))
        });
        callbacks
    }

    fn say(&self, text: &str) -> bool {
        self.log.borrow_mut().say(&self.credentials.without_secrets(text)).is_ok()
    }

    fn refuse(&self, why: String) -> git2::Error {
        let err = git2::Error::new(ErrorCode::Auth, ErrorClass::Callback, &why);
        self.state.refusal.replace(Some(why));
        err
    }

    /// What is asked for, once each.
    fn credential(&self, url: &str, user: Option<&str>, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let host = &self.remote.host;
        let tries = self.state.tries.replace(self.state.tries.get() + 1);
        let user_or = |default: &'static str| user.or(self.remote.user.as_deref()).unwrap_or(default).to_owned();
        if allowed.contains(CredentialType::USERNAME) && tries < TRIES {
            return Cred::username(&user_or("git"));
        }
        let secret = if allowed.contains(CredentialType::SSH_KEY) { "SSH key" } else { "token" };
        if tries >= 2 || tries >= 1 && secret == "token" {
            return Err(self.refuse(format!("`{host}` refused the project's {secret}")));
        }
        match (secret, &self.credentials.ssh_key, &self.credentials.token) {
            ("SSH key", Some(key), _) => Cred::ssh_key(&user_or("git"), None, key, None),
            ("token", _, Some(token)) if allowed.contains(CredentialType::USER_PASS_PLAINTEXT) => {
                if !self.remote.is_origin_of(url) {
                    return Err(self.refuse(format!("`{host}` sends elsewhere for its repository: to `{url}`")));
                }
                Cred::userpass_plaintext(&user_or("x-access-token"), token)
            }
            _ => Err(self.refuse(format!("`{host}` wants a {secret}, and the project has none"))),
        }
    }

    fn check_host(&self, cert: &Cert<'_>) -> Result<CertificateCheckStatus, git2::Error> {
        // libgit2 checks certificates of https by itself.
        let Some(host_key) = cert.as_hostkey() else { return Ok(CertificateCheckStatus::CertificatePassthrough) };
        let host = file_name_of(&self.remote.host, self.remote.port);
        let Some((_, known_hosts)) = &self.credentials.known_hosts else {
            return Err(self.refuse(format!("the host key of `{host}` is not pinned")));
        };
        let verdict = match host_key.hostkey() {
            Some(key) => known_hosts.check(&self.remote.host, self.remote.port, key),
            None => Verdict::UnknownHost,
        };
        let offered = format!(
            "{} SHA256:{}",
            host_key.hostkey_type().map_or("unknown", |kind| kind.name()),
            host_key.hash_sha256().map(|hash| BASE64_STANDARD_NO_PAD.encode(hash)).unwrap_or_default()
        );
        match verdict {
            Verdict::Trusted => Ok(CertificateCheckStatus::CertificateOk),
            Verdict::Revoked => Err(self.refuse(format!("the host key of `{host}` is revoked: {offered}"))),
            Verdict::OtherKey(types) => Err(self.refuse(format!(
                "the host key of `{host}` is not the pinned one: it is {offered}, pinned is {}",
                types.join(", ")
            ))),
            Verdict::UnknownHost => {
                Err(self.refuse(format!("the host `{host}` is not in the known hosts: its key is {offered}")))
            }
        }
    }

    /// What a failure means: as `Err`, the end of the fetch; as `Ok`, the end only if the other ways fail too.
    fn judge(&self, err: &git2::Error) -> Result<Stop, Stop> {
        if let Some(why) = self.state.refusal.take() {
            return Err(Stop::Refused(why));
        }
        let host = &self.remote.host;
        let said = err.message();
        let refused = |why: String| Err(Stop::Refused(why));
        let machine = || Stop::Machine(anyhow!("cannot fetch from `{}`: {said}", self.remote.url));
        match (err.code(), err.class()) {
            (ErrorCode::Auth, _) => refused(format!("`{host}` refused the project's credentials: {said}")),
            (ErrorCode::Certificate, _) => refused(format!("`{host}` has no valid certificate: {said}")),
            (ErrorCode::Invalid, ErrorClass::Object) => refused(said.to_owned()),
            (_, ErrorClass::Http) if ["401", "403", "404"].iter().any(|status| said.ends_with(status)) => {
                refused(format!(
                    "`{host}` does not show this repository ({said})\n\
                     hint: is the URL right, and may the project's credentials read it?"
                ))
            }
            (_, ErrorClass::Net) if said.starts_with("cannot redirect") => {
                refused(format!("`{host}` sends elsewhere for its repository: {said}"))
            }
            // Nobody is there: the other ways would only wait for the same.
            (_, ErrorClass::Net | ErrorClass::Os) if said.starts_with("failed to") => Err(machine()),
            (_, ErrorClass::Net | ErrorClass::Os | ErrorClass::Ssl | ErrorClass::Ssh | ErrorClass::Http) => {
                Ok(machine())
            }
            _ => Ok(Stop::Refused(said.to_owned())),
        }
    }
}

fn proxy() -> ProxyOptions<'static> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}
