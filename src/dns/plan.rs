//! Which records lead visitors here, and what is to be made and removed for that: pure.
//!
//! **Invariant:** only records with this kennel's own comment are removed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind, NewRecord, Record};
use crate::config::{Config, DnsConfig, RecordsTo};
use crate::model::Route;

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What stands where something else is to be.
    pub(super) clear: Vec<Record>,
    /// What is missing.
    pub(super) create: Vec<NewRecord>,
    /// What nobody wants any more.
    pub(super) delete: Vec<Record>,
    /// Names that are somebody else's, with what stands there.
    pub(super) taken: BTreeMap<String, String>,
}

/// The records there are to be: a wildcard for each project of the file, or that has routes, and one for each custom
/// domain in the zone that has a route.
pub(super) fn wanted(config: &Config, dns: &DnsConfig, to: &RecordsTo, routes: &[Route]) -> BTreeSet<NewRecord> {
    let below = |host: &str, domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let (base, zone) = (config.base_domain.as_str(), dns.zone.as_str());
    let mut names: BTreeSet<String> = config.projects.keys().map(|project| format!("*.{project}.{base}")).collect();
    for route in routes {
        let host = route.host.as_str();
        if below(host, base) {
            names.insert(format!("*.{}.{base}", route.project));
        } else if host == zone || below(host, zone) {
            names.insert(host.to_owned());
        }
    }
    let of = |name: &String| match to {
        RecordsTo::Addresses(addresses) => addresses
            .iter()
            .map(|address| {
                let kind = if address.is_ipv4() { Kind::A } else { Kind::Aaaa };
                NewRecord { name: name.clone(), kind, content: address.to_string() }
            })
            .collect::<Vec<_>>(),
        RecordsTo::Host(host) => {
            vec![NewRecord { name: name.clone(), kind: Kind::Cname, content: host.to_string() }]
        }
    };
    names.iter().flat_map(of).collect()
}

/// Compares what is wanted with what there is; `own` is the comment of this kennel's.
pub(super) fn plan(wanted: &BTreeSet<NewRecord>, there: &[Record], own: &str) -> Plan {
    let mut plan = Plan::default();
    let mut kept = BTreeSet::new();
    let mut surplus = Vec::new();
    let mut others: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in there {
        if record.comment != own {
            others.entry(&record.record.name).or_default().push(record);
        } else if !(wanted.contains(&record.record) && kept.insert(&record.record)) {
            surplus.push(record);
        }
    }
    for record in wanted.iter().filter(|record| !kept.contains(record)) {
        let stands = others.get(&*record.name).into_iter().flatten().find(|other| excludes(record.kind, other));
        match stands {
            Some(other) => {
                let NewRecord { kind, content, .. } = &other.record;
                plan.taken.insert(record.name.clone(), format!("{} {content}", kind.as_str()));
            }
            None => plan.create.push(record.clone()),
        }
    }
    for record in surplus {
        // Beside a CNAME there is nothing (RFC 1034, section 3.6.2); an address goes after the new one has come.
        let in_the_way = plan.create.iter().any(|new| {
            new.name == record.record.name && (new.kind == Kind::Cname || record.record.kind == Kind::Cname)
        });
        if in_the_way { plan.clear.push(record.clone()) } else { plan.delete.push(record.clone()) }
    }
    plan
}

/// Whether a record of somebody else keeps kennel from making one of this kind at the same name.
fn excludes(kind: Kind, other: &Record) -> bool {
    kind == Kind::Cname || matches!(other.record.kind, Kind::A | Kind::Aaaa | Kind::Cname)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const OWN: &str = "kennel 1 visitors";

    fn record(line: &str) -> NewRecord {
        let [kind, name, content] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        NewRecord { name: name.to_owned(), kind: Kind::of(kind), content: content.to_owned() }
    }

    fn there(line: &str, comment: &str) -> Record {
        Record { id: line.to_owned(), record: record(line), comment: comment.to_owned() }
    }

    fn set(lines: &[&str]) -> BTreeSet<NewRecord> {
        lines.iter().map(|line| record(line)).collect()
    }

    fn ids(records: &[Record]) -> Vec<&str> {
        records.iter().map(|record| record.id.as_str()).collect()
    }

    fn route(project: &str, host: &str) -> Route {
        Route { project: project.parse().unwrap(), ..Route::example(host, 1) }
    }

    #[test]
    fn each_project_has_a_wildcard_and_each_custom_domain_of_the_zone_a_record() {
        let config = config::parse(
            "base_domain = \"apps.example.com\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\n\
             zone = \"example.com\"\nrecords = [\"203.0.113.7\", \"2001:db8::7\"]\n[projects.shop]\n\
             repo_url = \"https://forge.example.com/me/shop.git\"\nrepo_type = \"forgejo\"\n\
             webhook_secret_file = \"/s\"\ndefault_branch = \"main\"",
        )
        .unwrap();
        let dns = config.dns.clone().unwrap();
        let routes = [
            route("shop", "api-main.shop.apps.example.com"),
            route("shop", "shop.example.com"),
            route("shop", "example.com"),
            route("shop", "shop.example.org"),
            route("shop", "notexample.com"),
            route("gone", "api-main.gone.apps.example.com"),
        ];
        let names = |to: &RecordsTo, routes: &[Route]| {
            wanted(&config, &dns, to, routes)
                .iter()
                .map(|r| format!("{} {} {}", r.name, r.kind.as_str(), r.content))
                .collect::<Vec<_>>()
        };
        let host = RecordsTo::Host("here.example.net".parse().unwrap());
        assert_eq!(
            names(&host, &routes),
            [
                "*.gone.apps.example.com CNAME here.example.net",
                "*.shop.apps.example.com CNAME here.example.net",
                "example.com CNAME here.example.net",
                "shop.example.com CNAME here.example.net",
            ]
        );
        assert_eq!(
            names(dns.records.as_ref().unwrap(), &[]),
            ["*.shop.apps.example.com A 203.0.113.7", "*.shop.apps.example.com AAAA 2001:db8::7"]
        );
    }

    #[test]
    fn what_is_missing_is_made_and_what_nobody_wants_goes_if_it_is_kennels_own() {
        let here = [
            there("A a.example 203.0.113.7", OWN),
            there("A old.example 203.0.113.7", OWN),
            there("A hand.example 203.0.113.7", ""),
            there("A other.example 203.0.113.7", "kennel 2 visitors"),
            there("TXT _acme-challenge.a.example proof", "kennel 1 acme-challenge"),
        ];
        let plan = plan(&set(&["A a.example 203.0.113.7", "A b.example 203.0.113.7"]), &here, OWN);
        assert_eq!(plan.create, [record("A b.example 203.0.113.7")]);
        assert_eq!(ids(&plan.delete), ["A old.example 203.0.113.7"]);
        assert!(plan.clear.is_empty() && plan.taken.is_empty(), "{plan:?}");
    }

    #[test]
    fn a_name_that_is_somebody_elses_is_left_alone() {
        let here = [
            there("A a.example 198.51.100.1", ""),
            there("CNAME b.example elsewhere.example", "kennel 2 visitors"),
            there("MX c.example mail.example", ""),
        ];
        let addresses = plan(&set(&["A a.example 1.1.1.1", "AAAA b.example ::1", "A c.example 1.1.1.1"]), &here, OWN);
        assert_eq!(addresses.create, [record("A c.example 1.1.1.1")], "mail and an address stand side by side");
        let taken: Vec<_> = addresses.taken.iter().map(|(name, what)| format!("{name}: {what}")).collect();
        assert_eq!(taken, ["a.example: A 198.51.100.1", "b.example: CNAME elsewhere.example"]);
        let names = plan(&set(&["CNAME c.example here.example"]), &here, OWN);
        assert_eq!((names.create, names.taken.len()), (vec![], 1), "nothing stands beside a CNAME");
        assert!(addresses.delete.is_empty() && names.delete.is_empty());
    }

    #[test]
    fn an_address_is_replaced_without_a_gap_and_a_cname_before_anything_else_comes() {
        let old = [there("A a.example 203.0.113.1", OWN)];
        let moved = plan(&set(&["A a.example 203.0.113.2"]), &old, OWN);
        assert_eq!(
            (moved.clear.len(), moved.create.len(), ids(&moved.delete)),
            (0, 1, vec!["A a.example 203.0.113.1"])
        );
        let renamed = plan(&set(&["CNAME a.example here.example"]), &old, OWN);
        assert_eq!(
            (ids(&renamed.clear), renamed.create.len(), renamed.delete.len()),
            (vec!["A a.example 203.0.113.1"], 1, 0)
        );
        let twice = [there("A a.example 203.0.113.1", OWN), there("A a.example 203.0.113.1", OWN)];
        assert_eq!(plan(&set(&["A a.example 203.0.113.1"]), &twice, OWN).delete.len(), 1);
    }
}
