//! What each step does to the machine. Each says *ensure*: done twice, it is done once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Context, StepError, confinement, databases, health, secrets};
use crate::crash::{self, Point};
use crate::host::{Listener, SiteLink, UnitSpec, UnitState};
use crate::model::confinement::Confinement;
use crate::model::settings::ServiceSettings;
use crate::model::{DeploymentId, Ending, Environment, Kind, Port, Settings, Step};
use crate::store::{Artifact, ClaimedDeployment, GivenSecret, Switch, Target};

/// How many ports in strangers' hands are passed over before the machine counts as broken.
const PORT_TRIES: usize = 64;

/// Does one step.
pub(super) async fn perform(ctx: &Context, deployment: &ClaimedDeployment, step: Step) -> Result<(), StepError> {
    match step {
        Step::Allocate => allocate(ctx, deployment).await,
        Step::WriteEnv => {
            let spec = unit_spec(ctx, deployment).await?;
            ctx.machine.ensure_env_file(&spec).await?;
            crash::point(Point::EnvWritten);
            Ok(())
        }
        Step::InstallUnit => {
            let spec = unit_spec(ctx, deployment).await?;
            ctx.machine.ensure_unit(&spec).await?;
            crash::point(Point::UnitWritten);
            Ok(())
        }
        Step::StartUnit => {
            let unit = deployment.target.tag.unit(deployment.id);
            // Both once more: they are in `/run`, and the machine may have been switched off since.
            let spec = unit_spec(ctx, deployment).await?;
            ctx.machine.ensure_env_file(&spec).await?;
            ctx.machine.ensure_unit(&spec).await?;
            crash::point(Point::UnitStarting);
            match ctx.machine.start_unit(&unit).await {
                Ok(()) => {
                    crash::point(Point::UnitStarted);
                    Ok(())
                }
                Err(err) => {
                    let mut reason = crate::telemetry::chain(&err);
                    health::append_journal(ctx, &unit, &mut reason).await;
                    Err(StepError::Unfit(Ending::Failed, confinement::explained(reason, &spec.confinement)))
                }
            }
        }
        Step::AwaitHealthy => {
            health::await_healthy(ctx, deployment).await?;
            crash::point(Point::HealthPassed);
            Ok(())
        }
        Step::SwitchRoute => switch_route(ctx, deployment).await,
        Step::Drain => drain(ctx, deployment).await,
        Step::Stop => match deployment.kind {
            Kind::Service => {
                crash::point(Point::UnitStopping);
                ctx.machine.stop_unit(&deployment.target.tag.unit(deployment.id)).await?;
                crash::point(Point::UnitStopped);
                Ok(())
            }
            Kind::Site => Ok(()),
        },
        Step::Release => {
            if deployment.kind == Kind::Service {
                ctx.machine.remove_unit(&deployment.target.tag.unit(deployment.id)).await?;
                crash::point(Point::UnitRemoved);
            }
            ctx.store.release_port(deployment.id).await?;
            crash::point(Point::PortReleased);
            Ok(())
        }
    }
}

/// Begins a pending deployment, or records that it is the running version once more and returns `false`.
pub(super) async fn begin(ctx: &Context, deployment: &ClaimedDeployment) -> Result<bool, StepError> {
    let artifact = ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
    confinement::check(ctx, &deployment.target, &artifact.settings)?;
    let secrets = secrets::gather(ctx, deployment, &artifact).await?;
    let fingerprint = fingerprint(ctx, deployment, &artifact, &secrets);
    if let Some((live, Some(before))) = ctx.store.live_deployment(deployment.target.id).await?
        && before == fingerprint
        && is_up(ctx, deployment, live).await?
    {
        let reason = format!("deployment {live} is the same and serves");
        ctx.store.skip_deployment(deployment.id, &reason).await?;
        crash::point(Point::DeploymentSkipped);
        tracing::info!("Deployment {} of `{}` changes nothing: {reason}", deployment.id, deployment.target.name);
        return Ok(false);
    }
    ctx.store.start_deployment(deployment.id, &fingerprint, &secrets).await?;
    crash::point(Point::DeploymentBegun);
    Ok(true)
}

async fn is_up(ctx: &Context, deployment: &ClaimedDeployment, live: DeploymentId) -> anyhow::Result<bool> {
    let unit = deployment.target.tag.unit(live);
    Ok(match deployment.kind {
        Kind::Site => true,
        Kind::Service => matches!(ctx.machine.unit_state(&unit).await?, UnitState::Active { .. }),
    })
}

async fn allocate(ctx: &Context, deployment: &ClaimedDeployment) -> Result<(), StepError> {
    let artifact = ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
    if let Settings::Service(service) = &artifact.settings {
        databases::ensure(ctx, &deployment.target, service).await?;
    }
    claim_custom_domain(ctx, &deployment.target, &artifact.settings).await?;
    if deployment.kind == Kind::Site {
        return Ok(());
    }
    let mut skip = Vec::new();
    for _ in 0..PORT_TRIES {
        let port = ctx.store.ensure_port(deployment.id, &skip).await?;
        crash::point(Point::PortAllocated);
        match ctx.machine.listener(port).await? {
            Listener::None => return Ok(()),
            Listener::Owned { .. } => skip.push(port),
        }
    }
    Err(StepError::Broken(anyhow!("{PORT_TRIES} ports in a row are in use by programs that are not kennel's")))
}

/// The custom domain that a target may have: of the default branch only.
fn custom_domain<'a>(target: &Target, settings: &'a Settings) -> Option<&'a crate::model::HostName> {
    settings.custom_domain().filter(|_| target.environment == Environment::Prod)
}

async fn claim_custom_domain(ctx: &Context, target: &Target, settings: &Settings) -> Result<(), StepError> {
    let Some(domain) = custom_domain(target, settings) else { return Ok(()) };
    let refused = |why: &str| {
        Err(StepError::Unfit(Ending::Failed, format!("the custom domain `{domain}` cannot be used: {why}")))
    };
    let config = ctx.config.load();
    if domain == &config.base_domain || domain.as_str().ends_with(&format!(".{}", config.base_domain)) {
        return refused(&format!("it lies under `{}`, where kennel gives names itself", config.base_domain));
    }
    if config.control_domain.as_ref() == Some(domain) {
        return refused("it is kennel's control domain");
    }
    if let Some(project) = config.projects.get(&target.project)
        && !project.may_claim(domain)
    {
        return refused("the operator's `custom_domains` for this project do not list it");
    }
    if !ctx.store.claim_host(domain, target.id).await? {
        return refused("another target has it");
    }
    crash::point(Point::DomainClaimed);
    Ok(())
}

async fn switch_route(ctx: &Context, deployment: &ClaimedDeployment) -> Result<(), StepError> {
    let target = &deployment.target;
    let artifact = ctx.store.artifact(deployment.build_id, &target.name).await?;
    match ctx.store.switch_route(deployment, custom_domain(target, &artifact.settings)).await? {
        Switch::Live(_) => crash::point(Point::SwitchStored),
        Switch::Refused(why) => return Err(StepError::Unfit(Ending::Cancelled, why.to_owned())),
    }
    ctx.router.reload_target(deployment.target.id).await?;
    crash::point(Point::SwitchReloaded);
    if deployment.kind == Kind::Site {
        ctx.machine.ensure_site_link(&site_link(target), &artifact.store_path).await?;
        crash::point(Point::LinkMade);
    }
    Ok(())
}

async fn drain(ctx: &Context, deployment: &ClaimedDeployment) -> Result<(), StepError> {
    let artifact = ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
    // The table must have forgotten this version before it is closed, or its visitors would find it shut.
    ctx.router.reload_target(deployment.target.id).await?;
    let begun = deployment.draining_at.unwrap_or_default();
    let spent = u64::try_from(Timestamp::now().as_millisecond() - begun).unwrap_or(0);
    let whole = Duration::from_secs(artifact.settings.drain_secs().into());
    crash::point(Point::DrainBegun);
    ctx.router.drain(deployment.id, whole.saturating_sub(Duration::from_millis(spent))).await;
    crash::point(Point::DrainEnded);
    Ok(())
}

/// The link of a site's target.
pub(super) fn site_link(target: &Target) -> SiteLink {
    SiteLink { project: target.project.clone(), slug: target.slug.clone(), site: target.name.clone() }
}

/// Everything the machine needs to render a deployment's unit and environment file.
pub(super) async fn unit_spec(ctx: &Context, deployment: &ClaimedDeployment) -> anyhow::Result<UnitSpec> {
    let target = &deployment.target;
    let artifact = ctx.store.artifact(deployment.build_id, &target.name).await?;
    let port = ctx.store.port(deployment.id).await?.context("it has no port")?;
    let Settings::Service(service) = &artifact.settings else {
        return Err(anyhow!("deployment {} is of a site", deployment.id));
    };
    let mut env = variables(ctx, deployment, service);
    env.extend(version_variables(deployment, port));
    env.extend(databases::variables(ctx, target, service).await?);
    Ok(UnitSpec {
        project: target.project.clone(),
        branch: target.branch.clone(),
        environment: target.environment,
        slug: target.slug.clone(),
        service: target.name.clone(),
        tag: target.tag.clone(),
        user: target.user.clone(),
        deployment: deployment.id,
        port,
        store_path: artifact.store_path,
        program: artifact.program.context("its artifact names no program")?,
        env,
        secrets: secrets::files(ctx, deployment).await?,
        confinement: confinement::of(ctx, &target.project, service),
    })
}

/// Its own variables, and kennel's that are the same for every version.
fn variables(ctx: &Context, deployment: &ClaimedDeployment, service: &ServiceSettings) -> BTreeMap<String, String> {
    let target = &deployment.target;
    let config = ctx.config.load();
    let data = config.state_dir.join("services").join(target.project.as_str()).join(target.slug.as_str());
    let mut env = service.env.clone();
    for (name, value) in [
        ("HOST", "127.0.0.1".to_owned()),
        ("KENNEL_PROJECT", target.project.to_string()),
        ("KENNEL_BRANCH", target.branch.name()),
        ("KENNEL_SERVICE", target.name.to_string()),
        ("KENNEL_ENVIRONMENT", target.environment.to_string()),
        ("KENNEL_URL", config.url_of(&target.host)),
        ("KENNEL_DATA_DIR", data.join(target.name.as_str()).display().to_string()),
    ] {
        env.insert(name.to_owned(), value);
    }
    env
}

/// kennel's variables that differ from version to version, and so do not count when two are compared.
fn version_variables(deployment: &ClaimedDeployment, port: Port) -> [(String, String); 3] {
    [
        ("PORT".to_owned(), port.to_string()),
        ("KENNEL_COMMIT".to_owned(), deployment.commit.to_string()),
        ("KENNEL_DEPLOYMENT".to_owned(), deployment.id.to_string()),
    ]
}

/// Equal for two deployments of a target that would run the same program with the same settings.
fn fingerprint(ctx: &Context, deployment: &ClaimedDeployment, artifact: &Artifact, secrets: &[GivenSecret]) -> String {
    let (env, kept_in) = match &artifact.settings {
        Settings::Service(service) => {
            (variables(ctx, deployment, service), confinement::of(ctx, &deployment.target.project, service))
        }
        Settings::Site(_) => (BTreeMap::new(), Confinement::default()),
    };
    let mut whole = serde_json::json!({
        "store_path": artifact.store_path,
        "program": artifact.program,
        "settings": artifact.settings,
        "env": env,
        "secrets": secrets.iter().map(|secret| (&secret.name, &secret.fingerprint)).collect::<BTreeMap<_, _>>(),
        "user": deployment.target.user,
        "host": deployment.target.host,
        "databases": databases::servers(ctx, &artifact.settings),
    });
    // Only where there is any: what was deployed before there were limits is still the same.
    if !kept_in.is_ordinary() {
        whole["confinement"] = serde_json::json!(kept_in);
    }
    hex::encode(Sha256::digest(whole.to_string()))
}
