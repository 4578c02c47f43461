//! Which of the operator's secrets a deployment gets: those of its environment, by name.
//!
//! **Invariant:** only names, files and keyed fingerprints pass through here; what the files hold stays with the
//! machine.

use super::{Context, StepError};
use crate::host::SecretFiles;
use crate::model::{Ending, Settings};
use crate::store::{Artifact, ClaimedDeployment, GivenSecret, Target};
use crate::telemetry::chain;

/// What a deployment that begins is given. A secret that is not configured, or cannot be used, fails it by name.
pub(super) async fn gather(
    ctx: &Context,
    deployment: &ClaimedDeployment,
    artifact: &Artifact,
) -> Result<Vec<GivenSecret>, StepError> {
    let Settings::Service(service) = &artifact.settings else { return Ok(Vec::new()) };
    let target = &deployment.target;
    let files = look_up(ctx, target, &service.secrets).map_err(|reason| StepError::Unfit(Ending::Failed, reason))?;
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut fingerprints =
        match ctx.machine.secret_fingerprints(&ctx.key, &target.project, target.environment, &files).await {
            Ok(fingerprints) => fingerprints,
            // The fault lies in the operator's file: it is not tried again until it is asked for again.
            Err(err) => return Err(StepError::Unfit(Ending::Failed, chain(&err))),
        };
    let given = |(name, path): (String, _)| {
        let fingerprint = fingerprints.remove(&name).unwrap_or_default();
        GivenSecret { name, path, fingerprint }
    };
    Ok(files.into_iter().map(given).collect())
}

/// The files of these secrets for the target's environment, or the names of those that have none.
fn look_up(ctx: &Context, target: &Target, names: &[String]) -> Result<SecretFiles, String> {
    let config = ctx.config.load();
    let project = config.projects.get(&target.project);
    let (mut files, mut missing) = (SecretFiles::new(), Vec::new());
    for name in names {
        match project.and_then(|project| project.secret(target.environment, name)) {
            Some(path) => {
                files.insert(name.clone(), path.clone());
            }
            None => missing.push(format!("`{name}`")),
        }
    }
    if missing.is_empty() {
        return Ok(files);
    }
    let (what, them) = match missing.len() {
        1 => ("the secret", "it"),
        _ => ("the secrets", "them"),
    };
    let (environment, missing) = (target.environment, missing.join(", "));
    Err(format!(
        "it asks for {what} {missing}, not configured for {environment}\n\
         hint: add {them} to `[projects.{}.secrets.{environment}]` in the daemon's file, `systemctl reload kennel`, deploy again",
        target.project
    ))
}

/// The files of the secrets a deployment was given. Where the operator has put one elsewhere since, it is read there;
/// where the daemon's file names it no more, it is read where it was: what serves goes on serving.
pub(super) async fn files(ctx: &Context, deployment: &ClaimedDeployment) -> anyhow::Result<SecretFiles> {
    let given = ctx.store.given_secrets(deployment.id).await?;
    let config = ctx.config.load();
    let target = &deployment.target;
    let project = config.projects.get(&target.project);
    let now = |secret: GivenSecret| {
        let path = project.and_then(|project| project.secret(target.environment, &secret.name)).cloned();
        (secret.name, path.unwrap_or(secret.path))
    };
    Ok(given.into_iter().map(now).collect())
}
