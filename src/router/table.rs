//! Which host leads where: an immutable table, built purely from rows and the table before it.
//!
//! **Invariant:** nothing here knows HTTP, and nothing here touches a socket or a file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use super::site::Site;
use super::upstream::Upstream;
use crate::model::{DeploymentId, Destination, Port, Route, StorePath};

/// What answers for a host.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A service on loopback.
    Service(Arc<Upstream>),
    /// Files of the store.
    Site(Arc<Site>),
}

/// Everything a request needs to find its way.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    hosts: HashMap<Box<str>, Entry>,
    /// Upstreams of this table and of those before it that something still holds: a drain looks for them here.
    upstreams: Vec<Weak<Upstream>>,
}

impl RouteTable {
    /// The table of `routes`.
    ///
    /// What serves the same deployment at the same place is carried over from `previous`, so that its
    /// in-flight count and its idle connections survive; a drained upstream is not, since it never serves again.
    /// `lanes` is how many threads keep connections.
    pub(super) fn build(routes: &[Route], previous: &Self, store_dir: &Path, lanes: usize) -> Self {
        let mut sites: Vec<Arc<Site>> = previous.sites().cloned().collect();
        let mut hosts = HashMap::with_capacity(routes.len());
        // Those whose drain has begun are carried along only to be found.
        let (closed, open): (Vec<_>, Vec<_>) = previous.upstreams().partition(|upstream| upstream.is_closed());
        let place = |upstream: Arc<Upstream>| ((upstream.deployment(), upstream.port()), upstream);
        let mut open: HashMap<(DeploymentId, Port), Arc<Upstream>> = open.into_iter().map(place).collect();
        for route in routes {
            let entry = match &route.destination {
                Destination::Service { port, .. } => {
                    let upstream = open
                        .entry((route.deployment, *port))
                        .or_insert_with(|| Arc::new(Upstream::new(route.deployment, *port, lanes)));
                    Entry::Service(Arc::clone(upstream))
                }
                Destination::Site { root, spa } => Entry::Site(site(&mut sites, root, *spa, store_dir)),
            };
            hosts.insert(route.host.as_str().into(), entry);
        }
        let upstreams = open.values().chain(&closed).map(Arc::downgrade).collect();
        Self { hosts, upstreams }
    }

    /// What answers for `host`, a name in lower case without port or trailing dot.
    pub(super) fn find(&self, host: &str) -> Option<&Entry> {
        self.hosts.get(host)
    }

    /// The upstreams of `deployment`, in this table or left over from one before it.
    pub(super) fn upstreams_of(&self, deployment: DeploymentId) -> Vec<Arc<Upstream>> {
        self.upstreams.iter().filter_map(Weak::upgrade).filter(|up| up.deployment() == deployment).collect()
    }

    /// Every upstream that something still holds.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        self.upstreams.iter().filter_map(Weak::upgrade)
    }

    fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.hosts.values().filter_map(|entry| match entry {
            Entry::Site(site) => Some(site),
            Entry::Service(_) => None,
        })
    }
}

fn site(known: &mut Vec<Arc<Site>>, root: &StorePath, spa: bool, store_dir: &Path) -> Arc<Site> {
    if let Some(site) = known.iter().find(|site| site.serves(root, spa)) {
        return Arc::clone(site);
    }
    let site = Arc::new(Site::new(store_dir, root, spa));
    known.push(Arc::clone(&site));
    site
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, deployment: i64, port: u16) -> Route {
        Route {
            host: host.parse().unwrap(),
            deployment: DeploymentId(deployment),
            destination: Destination::Service { port: port.try_into().unwrap(), health_path: None },
            drain_secs: 30,
        }
    }

    fn build(routes: &[Route], previous: &RouteTable) -> RouteTable {
        RouteTable::build(routes, previous, Path::new("/nix/store"), 2)
    }

    fn upstream(table: &RouteTable, host: &str) -> Arc<Upstream> {
        match table.find(host) {
            Some(Entry::Service(upstream)) => Arc::clone(upstream),
            other => panic!("{host} leads to {other:?}"),
        }
    }

    #[test]
    fn a_host_that_no_row_names_leads_nowhere() {
        let table = build(&[route("a.example", 1, 18000)], &RouteTable::default());
        assert!(table.find("b.example").is_none());
        assert!(table.find("").is_none());
        assert!(build(&[], &table).find("a.example").is_none());
    }

    #[test]
    fn two_hosts_of_one_deployment_share_its_upstream() {
        let rows = [route("a.example", 1, 18000), route("b.example", 1, 18000)];
        let table = build(&rows, &RouteTable::default());
        assert!(Arc::ptr_eq(&upstream(&table, "a.example"), &upstream(&table, "b.example")));
    }

    #[test]
    fn an_upstream_is_carried_over_by_deployment() {
        let first = build(&[route("a.example", 1, 18000), route("b.example", 2, 18001)], &RouteTable::default());
        let second = build(&[route("a.example", 3, 18002), route("b.example", 2, 18001)], &first);
        assert!(Arc::ptr_eq(&upstream(&first, "b.example"), &upstream(&second, "b.example")));
        assert!(!Arc::ptr_eq(&upstream(&first, "a.example"), &upstream(&second, "a.example")));
    }

    #[test]
    fn a_replaced_upstream_is_found_for_its_drain_while_something_holds_it() {
        let first = build(&[route("a.example", 1, 18000)], &RouteTable::default());
        let held = upstream(&first, "a.example").claim().unwrap();
        let second = build(&[route("a.example", 2, 18001)], &first);
        drop(first);
        let third = build(&[route("a.example", 2, 18001)], &second);
        drop(second);
        assert_eq!(third.upstreams_of(DeploymentId(1)).len(), 1);
        drop(held);
        assert!(third.upstreams_of(DeploymentId(1)).is_empty());
        assert_eq!(third.upstreams().count(), 1);
    }

    #[tokio::test]
    async fn a_drained_upstream_is_not_carried_over() {
        let rows = [route("a.example", 1, 18000)];
        let first = build(&rows, &RouteTable::default());
        upstream(&first, "a.example").drain(std::time::Duration::ZERO, || ()).await;
        let second = build(&rows, &first);
        assert!(upstream(&first, "a.example").claim().is_none());
        assert!(upstream(&second, "a.example").claim().is_some());
    }

    #[test]
    fn a_deployment_that_moved_to_another_port_gets_a_new_upstream() {
        let first = build(&[route("a.example", 1, 18000)], &RouteTable::default());
        let second = build(&[route("a.example", 1, 18001)], &first);
        assert_eq!(upstream(&second, "a.example").port().get(), 18001);
        assert_eq!(second.upstreams_of(DeploymentId(1)).len(), 2);
    }
}
