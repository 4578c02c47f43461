//! Where a hostname leads.

use super::{DeploymentId, HostName, Port, ProjectName, Protocol, ServiceName, StorePath, TargetId};

/// A hostname, and what answers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The name visitors ask for.
    pub host: HostName,
    /// Whose it is.
    pub target: TargetId,
    /// The project of that.
    pub project: ProjectName,
    /// The service or site of the project.
    pub service: ServiceName,
    /// The live version behind it.
    pub deployment: DeploymentId,
    /// What that version is.
    pub destination: Destination,
    /// Whether it has failed its health check for so long that it gets no visitors.
    pub unhealthy: bool,
    /// How long what this version has begun may go on once its successor is live, in seconds.
    pub drain_secs: u32,
}

#[cfg(test)]
impl Route {
    /// To the service `api` of `shop`, by HTTP/1.1 on the first port; its target has the deployment's number.
    pub(crate) fn example(host: &str, deployment: i64) -> Self {
        Self {
            host: host.parse().unwrap(),
            target: TargetId(deployment),
            project: "shop".parse().unwrap(),
            service: "api".parse().unwrap(),
            deployment: DeploymentId(deployment),
            destination: Destination::Service {
                port: Port::FIRST.try_into().unwrap(),
                protocol: Protocol::Http1,
                health_path: None,
            },
            unhealthy: false,
            drain_secs: 30,
        }
    }
}

/// What answers a visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A service on this machine's loopback.
    Service {
        /// Where it listens on 127.0.0.1.
        port: Port,
        /// What it speaks.
        protocol: Protocol,
        /// The path the monitor asks for; `None` when a connection is enough.
        health_path: Option<String>,
    },
    /// Files of the Nix store.
    Site {
        /// The directory.
        root: StorePath,
        /// Those of the versions before it that are kept in the store, the newest first.
        previous: Vec<StorePath>,
        /// Whether a path that names no file is answered by `/index.html`.
        spa: bool,
    },
}
