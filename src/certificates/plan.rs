//! What is to be ordered, asked and forgotten, and when: pure, from rows and the time.
//!
//! **Invariant:** only hosts that are wanted are ordered for, and one that waits after a failure is not.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::chance::BackOff;
use crate::model::{CertificateName, HostName, ProjectName};
use crate::store::CertificateRow;

/// How long the certificate of a host without route is kept, in case it comes back.
const KEEP_UNWANTED: Duration = Duration::from_secs(7 * 86_400);

/// How soon an authority may have a certificate renewed.
const SUGGESTED_MIN: Duration = Duration::from_secs(3_600);

/// All that decides.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// In milliseconds since 1970, as all times here.
    pub(super) now: i64,
    /// What certificates by ACME are to be for: hosts and wildcards.
    pub(super) wanted: &'a BTreeSet<CertificateName>,
    /// What has been done for them.
    pub(super) rows: &'a [CertificateRow],
    /// Whose certificates are there to be shown.
    pub(super) held: &'a BTreeSet<CertificateName>,
    /// The authority's directory.
    pub(super) directory: &'a str,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Hosts without a row, or with one that calls them unwanted.
    pub(super) wanted: Vec<CertificateName>,
    /// Hosts that have ceased to be wanted.
    pub(super) unwanted: Vec<CertificateName>,
    /// Hosts that have not been wanted for long.
    pub(super) forget: Vec<CertificateName>,
    /// Certificates to be ordered, the most urgent first.
    pub(super) order: Vec<CertificateName>,
    /// Certificates of which the authority is to be asked when to renew them.
    pub(super) ask: Vec<CertificateName>,
    /// When there is something to do next.
    pub(super) next: Option<i64>,
}

/// What certificates are to be for: these hosts. Where wildcards can be had, one stands for all hosts of a project, and
/// each of `projects` has one from the beginning.
pub(super) fn names<'p>(
    hosts: &[HostName],
    projects: impl Iterator<Item = &'p ProjectName>,
    base_domain: &HostName,
    wildcards: Wildcards,
) -> BTreeSet<CertificateName> {
    let below = |project: &str| CertificateName::below(&format!("{project}.{base_domain}"));
    let wildcard = |host: &HostName| {
        let (first, project) = host.as_str().strip_suffix(base_domain.as_str())?.strip_suffix('.')?.split_once('.')?;
        (!first.is_empty() && !project.contains('.')).then(|| below(project))?
    };
    match wildcards {
        Wildcards::No => hosts.iter().map(CertificateName::from).collect(),
        Wildcards::Yes => {
            let hosts = hosts.iter().map(|host| wildcard(host).unwrap_or_else(|| host.into()));
            hosts.chain(projects.filter_map(|project| below(project.as_str()))).collect()
        }
    }
}

/// Whether certificates for all hosts of a project can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcards {
    /// There is no DNS provider.
    No,
    /// There is one.
    Yes,
}

/// Decides.
pub(super) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let known: BTreeSet<&CertificateName> = facts.rows.iter().map(|row| &row.name).collect();
    plan.wanted.extend(facts.wanted.iter().filter(|host| !known.contains(host)).cloned());
    // New hosts are the most urgent, then those whose certificate ends first.
    let mut due: Vec<(Option<i64>, CertificateName)> = plan.wanted.iter().map(|host| (None, host.clone())).collect();
    let mut next = Vec::new();
    for row in facts.rows {
        if !facts.wanted.contains(&row.name) {
            match row.unwanted_since {
                None => plan.unwanted.push(row.name.clone()),
                Some(since) if since.saturating_add(ms(KEEP_UNWANTED)) <= facts.now => {
                    plan.forget.push(row.name.clone());
                }
                Some(_) => {}
            }
            continue;
        }
        if row.unwanted_since.is_some() {
            plan.wanted.push(row.name.clone());
        }
        let good = facts.held.contains(&row.name) && row.directory.as_deref() == Some(facts.directory);
        let begun = row.order_url.is_some();
        let at = row.renew_at.filter(|_| good && !begun).unwrap_or(0).max(row.try_at);
        if at <= facts.now {
            due.push((row.expires_at.filter(|_| facts.held.contains(&row.name)), row.name.clone()));
            continue;
        }
        next.push(at);
        match row.ask_at.filter(|_| good && !begun) {
            Some(ask_at) if ask_at <= facts.now => plan.ask.push(row.name.clone()),
            Some(ask_at) => next.push(ask_at),
            None => {}
        }
    }
    due.sort();
    plan.order = due.into_iter().map(|(_, host)| host).collect();
    plan.next = next.into_iter().min();
    plan
}

/// When a certificate is renewed of which its authority says nothing: after two thirds of its life, and not all at
/// once. `chance` is between 0 and 1, times are in milliseconds.
pub(super) fn renewal(begins: i64, ends: i64, chance: f64) -> i64 {
    let life = ends.saturating_sub(begins);
    within(begins.saturating_add(life / 3 * 2), begins.saturating_add(life / 4 * 3), chance)
}

/// When a certificate is renewed whose authority names a window for that (RFC 9773): within it, but with time left to
/// try again, and not at once, so that no authority has kennel order all day. Times are in milliseconds.
pub(super) fn suggested((from, to): (i64, i64), now: i64, (begins, ends): (i64, i64), chance: f64) -> i64 {
    let earliest = now.saturating_add(ms(SUGGESTED_MIN).min(ends.saturating_sub(now) / 2));
    let latest = begins.saturating_add(ends.saturating_sub(begins) / 6 * 5);
    within(from, to, chance).max(earliest).min(latest)
}

/// A moment between two; `chance` is between 0 and 1.
pub(super) fn within(from: i64, to: i64, chance: f64) -> i64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "some milliseconds do not matter")]
    let offset = (to.saturating_sub(from).max(0) as f64 * chance) as i64;
    from.saturating_add(offset)
}

/// For an authority that cannot be used: one try a wait, however many hosts there are.
pub(super) const AUTHORITY: BackOff = BackOff::of_secs(10, 3_600);
/// For a host: authorities take few failed proofs an hour.
pub(super) const HOST: BackOff = BackOff::of_secs(300, 86_400);
/// For a DNS provider that fails, or is away.
pub(super) const PROVIDER: BackOff = BackOff::of_secs(10, 3_600);
/// For a host for which there have been too many orders.
pub(super) const LIMITED: BackOff = BackOff::of_secs(3_600, 86_400);

/// In milliseconds.
pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "https://ca/dir";
    const DAY: i64 = 86_400_000;

    fn host(name: &str) -> CertificateName {
        name.parse().unwrap()
    }

    fn hosts(names: &[&str]) -> BTreeSet<CertificateName> {
        names.iter().map(|name| host(name)).collect()
    }

    /// A host of which nothing has been tried.
    fn fresh(name: &str) -> CertificateRow {
        CertificateRow {
            name: host(name),
            directory: None,
            order_directory: None,
            order_url: None,
            expires_at: None,
            renew_at: None,
            ask_at: None,
            failures: 0,
            try_at: 0,
            problem: None,
            unwanted_since: None,
        }
    }

    /// A host whose certificate is renewed on day 60 and ends on day 90.
    fn issued(name: &str) -> CertificateRow {
        let directory = Some(CA.to_owned());
        CertificateRow { directory, expires_at: Some(90 * DAY), renew_at: Some(60 * DAY), ..fresh(name) }
    }

    fn planned(now: i64, wanted: &[&str], held: &[&str], rows: &[CertificateRow]) -> Plan {
        plan(&Facts { now, wanted: &hosts(wanted), rows, held: &hosts(held), directory: CA })
    }

    #[test]
    fn one_wildcard_stands_for_all_hosts_of_a_project() {
        let shown = |wildcards| {
            let hosts = [
                "api-main.shop.b.example",
                "web-x.shop.b.example",
                "a.web.shop.b.example",
                "b.example",
                "own.example",
                "k.b.example",
            ];
            let hosts: Vec<HostName> = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let projects: Vec<ProjectName> = vec!["new".parse().unwrap(), "shop".parse().unwrap()];
            let base = "b.example".parse().unwrap();
            names(&hosts, projects.iter(), &base, wildcards).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(Wildcards::Yes),
            ["*.new.b.example", "*.shop.b.example", "a.web.shop.b.example", "b.example", "k.b.example", "own.example"],
            "a wildcard stands for one label"
        );
        assert_eq!(shown(Wildcards::No).len(), 6, "each on its own");
    }

    #[test]
    fn a_new_host_is_ordered_for_at_once_and_others_are_not() {
        let plan = planned(5, &["a.example"], &[], &[]);
        assert_eq!((plan.wanted, plan.order), (vec![host("a.example")], vec![host("a.example")]));
        assert_eq!(planned(5, &[], &[], &[]), Plan::default());
        let gone = planned(5, &[], &[], &[fresh("a.example")]);
        assert_eq!((gone.order, gone.unwanted), (vec![], vec![host("a.example")]));
    }

    #[test]
    fn a_certificate_is_renewed_when_its_time_has_come() {
        let row = issued("a.example");
        let before = planned(59 * DAY, &["a.example"], &["a.example"], std::slice::from_ref(&row));
        assert_eq!((before.order, before.next), (vec![], Some(60 * DAY)));
        let then = planned(60 * DAY, &["a.example"], &["a.example"], &[row]);
        assert_eq!(then.order, [host("a.example")]);
    }

    #[test]
    fn after_a_failure_nothing_is_tried_before_its_time() {
        let row = CertificateRow { try_at: 10, failures: 1, ..fresh("a.example") };
        assert_eq!(planned(9, &["a.example"], &[], std::slice::from_ref(&row)).order, []);
        assert_eq!(planned(9, &["a.example"], &[], std::slice::from_ref(&row)).next, Some(10));
        assert_eq!(planned(10, &["a.example"], &[], &[row]).order, [host("a.example")]);
        let late = CertificateRow { try_at: 70 * DAY, ..issued("a.example") };
        assert_eq!(planned(65 * DAY, &["a.example"], &["a.example"], &[late]).order, []);
    }

    #[test]
    fn a_certificate_that_is_lost_or_another_authoritys_is_ordered_anew() {
        let lost = planned(DAY, &["a.example"], &[], &[issued("a.example")]);
        assert_eq!(lost.order, [host("a.example")]);
        let other = CertificateRow { directory: Some("https://other/dir".to_owned()), ..issued("a.example") };
        assert_eq!(planned(DAY, &["a.example"], &["a.example"], &[other]).order, [host("a.example")]);
    }

    #[test]
    fn an_order_that_has_begun_is_gone_on_with() {
        let begun = CertificateRow { order_url: Some("https://ca/order/1".to_owned()), ..issued("a.example") };
        assert_eq!(planned(DAY, &["a.example"], &["a.example"], &[begun]).order, [host("a.example")]);
    }

    #[test]
    fn who_has_none_comes_first_and_then_whose_ends_first() {
        let ending = |name: &str, expires_at| CertificateRow { expires_at: Some(expires_at), ..issued(name) };
        let rows = [ending("a.example", 95 * DAY), ending("b.example", 91 * DAY), fresh("c.example")];
        let names = ["a.example", "b.example", "c.example", "d.example"];
        let plan = planned(80 * DAY, &names, &["a.example", "b.example"], &rows);
        let order: Vec<_> = plan.order.iter().map(CertificateName::as_str).collect();
        assert_eq!(order, ["c.example", "d.example", "b.example", "a.example"]);
    }

    #[test]
    fn the_certificate_of_a_host_that_went_is_kept_for_a_week() {
        let gone = CertificateRow { unwanted_since: Some(DAY), ..issued("a.example") };
        let rows = std::slice::from_ref(&gone);
        assert_eq!(planned(7 * DAY, &[], &["a.example"], rows).forget, []);
        assert_eq!(planned(8 * DAY, &[], &["a.example"], rows).forget, [host("a.example")]);
        let back = planned(7 * DAY, &["a.example"], &["a.example"], rows);
        assert_eq!((back.wanted, back.order), (vec![host("a.example")], vec![]));
    }

    #[test]
    fn the_authority_is_asked_for_a_better_time_to_renew() {
        let row = CertificateRow { ask_at: Some(2 * DAY), ..issued("a.example") };
        let rows = std::slice::from_ref(&row);
        let early = planned(DAY, &["a.example"], &["a.example"], rows);
        assert_eq!((early.ask, early.next), (vec![], Some(2 * DAY)));
        assert_eq!(planned(2 * DAY, &["a.example"], &["a.example"], rows).ask, [host("a.example")]);
        assert_eq!(planned(60 * DAY, &["a.example"], &["a.example"], rows).ask, [], "it is renewed anyway");
    }

    #[test]
    fn renewals_lie_between_two_thirds_and_three_quarters_of_a_life() {
        assert_eq!([0.0, 0.5, 1.0].map(|chance| renewal(0, 120 * DAY, chance) / DAY), [80, 85, 90]);
        assert_eq!(renewal(10, 10, 0.7), 10);
    }

    #[test]
    fn an_authority_says_when_to_renew_within_reason() {
        const HOUR: i64 = 3_600_000;
        let life = (0, 90 * DAY);
        assert_eq!(suggested((60 * DAY, 62 * DAY), DAY, life, 0.5), 61 * DAY);
        assert_eq!(suggested((0, DAY), 2 * DAY, life, 0.5), 2 * DAY + HOUR, "it is to be replaced soon");
        assert_eq!(suggested((88 * DAY, 99 * DAY), DAY, life, 1.0), 75 * DAY, "there must be time left");
        assert_eq!(suggested((0, DAY), 80 * DAY, life, 0.5), 75 * DAY, "it is overdue");
        assert_eq!(suggested((-DAY, DAY), 0, (0, 100), 0.1), 50, "it lives for a moment only");
    }
}
