//! Which host leads where: an immutable table, built purely from rows and the table before it.
//!
//! **Invariant:** nothing here knows HTTP, and nothing here touches a socket or a file.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::metrics::{Metrics, Series};
use super::site::{Files, Site, Tree};
use super::upstream::Upstream;
use crate::model::{DeploymentId, Destination, Port, Route, StorePath, TargetId};

/// What answers for a host.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A service on loopback.
    Service(Arc<Upstream>),
    /// Files of the store.
    Site(Arc<Site>),
    /// Nobody: the service fails its health check.
    Unhealthy,
}

/// Whether anybody has asked for a target since that was last written down.
#[derive(Debug)]
pub(super) struct Seen {
    target: TargetId,
    asked: AtomicBool,
    series: Arc<Series>,
}

impl Seen {
    /// Where its answers are counted.
    pub(super) fn series(&self) -> Arc<Series> {
        Arc::clone(&self.series)
    }

    /// Notes a request.
    pub(super) fn note(&self) {
        // Read first: all who serve a busy target share this line of memory.
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Clone)]
struct Host {
    entry: Entry,
    seen: Arc<Seen>,
}

/// Everything a request needs to find its way.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    hosts: HashMap<Box<str>, Host>,
    /// Upstreams of this table and of those before it that something still holds: a drain looks for them here.
    upstreams: Vec<Weak<Upstream>>,
}

impl RouteTable {
    /// The table of `routes`, and of what is in `previous` of targets that are `kept`.
    ///
    /// What serves the same deployment at the same place is carried over from `previous`, so that its
    /// in-flight count and its idle connections survive; a drained upstream is not, since it never serves again.
    /// So does what is in memory of a site's files. `lanes` is how many threads keep connections.
    pub(super) fn build(
        routes: &[Route],
        previous: &Self,
        kept: impl Fn(TargetId) -> bool,
        files: &Arc<Files>,
        metrics: &Metrics,
        lanes: usize,
    ) -> Self {
        let mut trees: HashMap<StorePath, Arc<Tree>> =
            previous.trees().map(|tree| (tree.name().clone(), Arc::clone(tree))).collect();
        let mut tree = |root: &StorePath| Arc::clone(trees.entry(root.clone()).or_insert_with(|| files.tree(root)));
        let mut seen: HashMap<TargetId, Arc<Seen>> =
            previous.hosts.values().map(|host| (host.seen.target, Arc::clone(&host.seen))).collect();
        let kept = previous.hosts.iter().filter(|(_, host)| kept(host.seen.target));
        let mut hosts: HashMap<_, _> = kept.map(|(name, host)| (name.clone(), host.clone())).collect();
        // Those whose drain has begun are carried along only to be found.
        let (closed, open): (Vec<_>, Vec<_>) = previous.upstreams().partition(|upstream| upstream.is_closed());
        let place = |upstream: Arc<Upstream>| ((upstream.deployment(), upstream.port()), upstream);
        let mut open: HashMap<(DeploymentId, Port), Arc<Upstream>> = open.into_iter().map(place).collect();
        for route in routes {
            let entry = match &route.destination {
                Destination::Service { .. } if route.unhealthy => Entry::Unhealthy,
                Destination::Service { port, protocol, .. } => {
                    let upstream = open
                        .entry((route.deployment, *port))
                        .or_insert_with(|| Arc::new(Upstream::new(route.deployment, *port, *protocol, lanes)));
                    Entry::Service(Arc::clone(upstream))
                }
                Destination::Site { root, previous, spa } => {
                    let (live, previous) = (tree(root), previous.iter().map(&mut tree).collect());
                    Entry::Site(Arc::new(Site::new(live, previous, *spa)))
                }
            };
            let fresh = || {
                let series = metrics.series(Some((route.project.clone(), route.service.clone())), lanes);
                Arc::new(Seen { target: route.target, asked: AtomicBool::new(false), series })
            };
            let seen = Arc::clone(seen.entry(route.target).or_insert_with(fresh));
            hosts.insert(route.host.as_str().into(), Host { entry, seen });
        }
        metrics.note_table(hosts.len());
        let upstreams = open.values().chain(&closed).map(Arc::downgrade).collect();
        Self { hosts, upstreams }
    }

    /// Whether it has the same hosts as `other`, wherever they lead.
    pub(super) fn has_hosts_of(&self, other: &Self) -> bool {
        self.hosts.len() == other.hosts.len() && self.hosts.keys().all(|host| other.hosts.contains_key(host))
    }

    /// What answers for `host`, a name in lower case without port or trailing dot.
    pub(super) fn find(&self, host: &str) -> Option<(&Entry, &Seen)> {
        self.hosts.get(host).map(|host| (&host.entry, &*host.seen))
    }

    /// The targets that were asked for since the last call, and those with a request or a WebSocket inside.
    pub(super) fn take_asked(&self) -> BTreeSet<TargetId> {
        let asked = |host: &&Host| host.seen.asked.swap(false, Ordering::Relaxed) || host.entry.is_busy();
        self.hosts.values().filter(asked).map(|host| host.seen.target).collect()
    }

    /// Takes a [`Self::take_asked`] back, since it could not be written down.
    pub(super) fn put_back(&self, asked: &BTreeSet<TargetId>) {
        self.hosts.values().filter(|host| asked.contains(&host.seen.target)).for_each(|host| host.seen.note());
    }

    /// The upstreams of `deployment`, in this table or left over from one before it.
    pub(super) fn upstreams_of(&self, deployment: DeploymentId) -> Vec<Arc<Upstream>> {
        self.upstreams.iter().filter_map(Weak::upgrade).filter(|up| up.deployment() == deployment).collect()
    }

    /// Every upstream that something still holds.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        self.upstreams.iter().filter_map(Weak::upgrade)
    }

    fn trees(&self) -> impl Iterator<Item = &Arc<Tree>> {
        let sites = self.hosts.values().filter_map(|host| match &host.entry {
            Entry::Site(site) => Some(site),
            Entry::Service(_) | Entry::Unhealthy => None,
        });
        sites.flat_map(|site| site.trees())
    }
}

impl Entry {
    /// Whether a request, or what has become of one, is inside.
    fn is_busy(&self) -> bool {
        match self {
            Self::Service(upstream) => upstream.claims() > 0,
            Self::Site(_) | Self::Unhealthy => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn route(host: &str, deployment: i64, port: u16) -> Route {
        let destination =
            Destination::Service { port: port.try_into().unwrap(), protocol: Protocol::Http1, health_path: None };
        Route { destination, ..Route::example(host, deployment) }
    }

    fn build(routes: &[Route], previous: &RouteTable) -> RouteTable {
        replace(routes, previous, |_| false)
    }

    fn replace(routes: &[Route], previous: &RouteTable, kept: impl Fn(TargetId) -> bool) -> RouteTable {
        RouteTable::build(routes, previous, kept, &Files::new("/nix/store".into(), 0), &Metrics::default(), 2)
    }

    fn upstream(table: &RouteTable, host: &str) -> Arc<Upstream> {
        match table.find(host) {
            Some((Entry::Service(upstream), _)) => Arc::clone(upstream),
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
    fn a_target_is_replaced_and_the_others_stay() {
        let custom = |target, deployment| Route { target: TargetId(target), ..route("own.example", deployment, 18003) };
        let rows = [route("a.example", 1, 18000), route("b.example", 2, 18001), custom(2, 2)];
        let first = build(&rows, &RouteTable::default());
        let leads = |table: &RouteTable| {
            let mut found: Vec<_> =
                table.hosts.keys().map(|host| (host.to_string(), upstream(table, host).deployment().0)).collect();
            found.sort();
            found
        };
        let of = |pairs: &[(&str, i64)]| pairs.iter().map(|(host, id)| ((*host).to_owned(), *id)).collect::<Vec<_>>();
        // The second gives its own domain up, the first takes it, and then has no live version.
        let second = replace(&[route("b.example", 2, 18001)], &first, |target| target != TargetId(2));
        assert_eq!(leads(&second), of(&[("a.example", 1), ("b.example", 2)]));
        let third = [Route { target: TargetId(1), ..route("a.example", 7, 18004) }, custom(1, 7)];
        let third = replace(&third, &second, |target| target != TargetId(1));
        assert_eq!(leads(&third), of(&[("a.example", 7), ("b.example", 2), ("own.example", 7)]));
        assert!(Arc::ptr_eq(&upstream(&first, "b.example"), &upstream(&third, "b.example")));
        let fourth = replace(&[], &third, |target| target != TargetId(1));
        assert_eq!(leads(&fourth), of(&[("b.example", 2)]));
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

    #[test]
    fn a_request_is_told_of_once_whatever_became_of_the_table_meanwhile() {
        let old = Route { target: TargetId(5), ..route("a.example", 1, 18000) };
        let custom = Route { host: "b.example".parse().unwrap(), ..old.clone() };
        let new = Route { target: TargetId(5), ..route("a.example", 2, 18001) };
        let other = Route { target: TargetId(6), ..route("c.example", 3, 18002) };
        let first = build(&[old, custom, other.clone()], &RouteTable::default());
        first.find("b.example").unwrap().1.note();
        let second = build(&[new, other], &first);
        let asked = second.take_asked();
        assert_eq!(asked, [TargetId(5)].into());
        assert!(second.take_asked().is_empty() && first.take_asked().is_empty());
        second.put_back(&asked);
        assert_eq!(second.take_asked(), asked);
    }

    #[test]
    fn a_target_with_somebody_inside_counts_as_asked_for() {
        let table = build(&[route("a.example", 1, 18000)], &RouteTable::default());
        let inside = upstream(&table, "a.example").claim().unwrap();
        assert_eq!(table.take_asked(), [TargetId(1)].into());
        drop(inside);
        assert!(table.take_asked().is_empty());
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
