//! Projects, and asking for a commit of one to be built and deployed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tracing::info;

use super::Api;
use super::extract::{Json as Body, Segments, name};
use super::problem::{Advice, ApiError};
use super::wire::{DeployAnswer, DeployRequest};
use crate::model::{BranchRef, CommitSha, ProjectName};
use crate::store::{Accepted, KnownCommit, ProjectView, Push};

/// The fewest digits that name a commit.
const DIGITS_MIN: usize = 7;

/// `GET /projects`.
pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<ProjectView>>, ApiError> {
    Ok(Json(api.store.list_projects().await?))
}

/// `POST /projects/<p>/deploy`.
pub(super) async fn deploy(
    State(api): State<Arc<Api>>,
    Segments(project): Segments<String>,
    Body(request): Body<DeployRequest>,
) -> Result<(StatusCode, Json<DeployAnswer>), ApiError> {
    let project: ProjectName = name(&project)?;
    let config = api.config.load();
    let Some(settings) = config.projects.get(&project) else {
        if !api.store.knows_project(&project).await? {
            return Err(api.no_such_project(&project));
        }
        let advice = Advice::new(format!("project `{project}` is no longer in the daemon's file"));
        return Err(ApiError::Conflict(advice.hint("add it there again, then `systemctl reload kennel`")));
    };
    let branch = api.find_branch(&project, &request).await?;
    let KnownCommit { commit, title } = api.find_commit(&project, &branch, request.commit.as_deref()).await?;
    let environment = settings.environment(&branch);
    let push = Push { project, branch, commit, title, environment };
    let build = match api.store.accept_push(None, &push).await? {
        Accepted::Queued(build) | Accepted::AlreadyBuilding(build) => build,
        Accepted::Redelivered(_) | Accepted::Removing | Accepted::NothingThere => {
            unreachable!("a push that no forge delivered always queues a build")
        }
    };
    api.builder.ring();
    let Push { project, branch, commit, .. } = push;
    let branch = branch.name();
    info!(project.name = %project, build.id = %build, "An operator asked for {commit} of {project}/{branch}");
    Ok((StatusCode::ACCEPTED, Json(DeployAnswer { build, project, branch, commit })))
}

impl Api {
    /// The project of a query, which must be known.
    pub(super) async fn known_project(&self, text: Option<&str>) -> Result<Option<ProjectName>, ApiError> {
        let Some(text) = text else { return Ok(None) };
        let project: ProjectName = name(text)?;
        if self.config.load().projects.contains_key(&project) || self.store.knows_project(&project).await? {
            return Ok(Some(project));
        }
        Err(self.no_such_project(&project))
    }

    fn no_such_project(&self, project: &ProjectName) -> ApiError {
        let advice = Advice::new(format!("there is no project `{project}`"));
        let config = self.config.load();
        let names: Vec<String> = config.projects.keys().map(|name| format!("`{name}`")).collect();
        ApiError::NoSuch(match names.is_empty() {
            true => advice.hint("add one to the daemon's file: `[projects.<name>]`"),
            false => advice.hint(format!("the projects are {}", names.join(", "))),
        })
    }

    /// The branch people mean by its name. One that kennel has not seen needs a commit to begin with.
    async fn find_branch(&self, project: &ProjectName, request: &DeployRequest) -> Result<BranchRef, ApiError> {
        let text = request.branch.as_str();
        let known = self.store.known_branches(project).await?;
        let mut called: Vec<_> = known.iter().filter(|known| known.branch.name() == text).collect();
        if called.is_empty() {
            called = known.iter().filter(|known| known.branch.as_str() == text).collect();
        }
        match called[..] {
            [one] if one.wanted || request.commit.is_some() => return Ok(one.branch.clone()),
            [_] => {
                let advice = Advice::new(format!("`{text}` of `{project}` was deleted or closed"));
                return Err(ApiError::Conflict(advice.hint("name the commit to deploy it all the same")));
            }
            [] => {}
            // Only a pull request and a branch that is called like one share a name.
            _ => {
                let refs: Vec<String> = called.iter().map(|known| format!("`{}`", known.branch)).collect();
                let advice = Advice::new(format!("`{text}` is a branch as well as a pull request"));
                return Err(ApiError::Conflict(advice.hint(format!("say {}", refs.join(" or ")))));
            }
        }
        let pull = text.strip_prefix("pr-").map(|number| format!("pull/{number}").parse());
        let branch = match pull {
            Some(Ok(pull)) => pull,
            _ => BranchRef::head(text).map_err(|err| ApiError::Invalid(Advice::new(err.to_string())))?,
        };
        if request.commit.is_some() {
            return Ok(branch);
        }
        let names: Vec<String> = known.iter().filter(|known| known.wanted).map(|known| known.branch.name()).collect();
        let advice = Advice::new(format!("there was no push to `{text}` of `{project}`"));
        Err(ApiError::NoSuch(match names.is_empty() {
            true => advice.hint("push to it, or name the commit"),
            false => advice.hint(format!("push to it, or name the commit; there were pushes to {}", first_few(&names))),
        }))
    }

    async fn find_commit(
        &self,
        project: &ProjectName,
        branch: &BranchRef,
        text: Option<&str>,
    ) -> Result<KnownCommit, ApiError> {
        let digits = text.unwrap_or_default().to_ascii_lowercase();
        let whole = digits.parse::<CommitSha>().ok();
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if text.is_some() && whole.is_none() && !(hex && (DIGITS_MIN..64).contains(&digits.len())) {
            let shown: String = digits.chars().take(80).collect();
            let advice = Advice::new(format!("commit {shown:?} is not 40 or 64 hexadecimal digits"));
            return Err(ApiError::Invalid(advice.hint("7 digits or more do for one that kennel has built before")));
        }
        let mut known = self.store.known_commits(project, branch, &digits).await?.into_iter();
        match (known.next(), known.next(), whole) {
            (Some(_), Some(_), None) if text.is_some() => {
                Err(ApiError::Invalid(Advice::new(format!("more than one commit begins with `{digits}`"))))
            }
            (Some(commit), ..) => Ok(commit),
            (None, _, Some(commit)) => Ok(KnownCommit { commit, title: None }),
            (None, ..) => {
                let of = format!("of `{}` of `{project}`", branch.name());
                let what = if text.is_some() { format!("commit `{digits}` {of}") } else { format!("commit {of}") };
                let advice = Advice::new(format!("kennel has not built a {what}"));
                Err(ApiError::NoSuch(advice.hint("give all of its 40 digits")))
            }
        }
    }
}

fn first_few(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > 5 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}
