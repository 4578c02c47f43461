//! How the names of branches and targets are chosen, so that no two ever meet.

use sha2::{Digest, Sha256};

use super::{
    BranchRef, BranchSlug, BuildId, DeploymentId, HostName, InvalidName, LABEL_MAX, NAME_MAX, ProjectName, ServiceName,
    TargetTag, USER_MAX, UnitName, UserName,
};

/// Six hexadecimal digits (or more, when those are taken) that tell two equal-looking names apart.
fn digest(project: &ProjectName, branch: &BranchRef, service: Option<&ServiceName>, digits: usize) -> String {
    let mut hasher = Sha256::new();
    for part in [project.as_str(), branch.as_str(), service.map_or("", ServiceName::as_str)] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let mut hex = hex::encode(hasher.finalize());
    hex.truncate(digits);
    hex
}

/// `joined` itself when it fits and is free, else cut and ended by a digest.
fn choose(joined: &str, max: usize, digest: impl Fn(usize) -> String, taken: impl Fn(&str) -> bool) -> String {
    if !joined.is_empty() && joined.len() <= max && !taken(joined) {
        return joined.to_owned();
    }
    let candidates = cut(joined, max, digest);
    let [.., longest] = candidates.clone();
    candidates.into_iter().find(|name| !taken(name)).unwrap_or(longest)
}

/// `joined`, cut and ended by digests of growing length.
fn cut(joined: &str, max: usize, digest: impl Fn(usize) -> String) -> [String; 3] {
    [6, 12, 24].map(|digits| {
        let room = max - digits - 1;
        let stem = joined.get(..room.min(joined.len())).unwrap_or_default().trim_end_matches('-');
        if stem.is_empty() { format!("b-{}", digest(digits)) } else { format!("{stem}-{}", digest(digits)) }
    })
}

/// Whether [`choose`] may give `name`, whatever is taken.
fn may_choose(name: &str, joined: &str, max: usize, digest: impl Fn(usize) -> String) -> bool {
    (name == joined && joined.len() <= max) || cut(joined, max, digest).iter().any(|candidate| candidate == name)
}

/// A branch's name, lower-case, anything but `[a-z0-9]` a single `-`, ends trimmed.
fn plain_slug(branch: &BranchRef) -> String {
    let mut slug = String::new();
    for c in branch.name().chars().flat_map(char::to_lowercase) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

impl BranchSlug {
    /// The slug of `branch`: lower-case, anything but `[a-z0-9]` a single `-`, ends trimmed, at most 40;
    /// with a digest when that is too long, empty, or `taken` by another branch of the project.
    #[must_use]
    pub fn choose(project: &ProjectName, branch: &BranchRef, taken: impl Fn(&str) -> bool) -> Self {
        let slug = plain_slug(branch);
        Self(choose(&slug, NAME_MAX, |digits| digest(project, branch, None, digits), taken))
    }
}

/// The names of one target, chosen once and stored in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetNames {
    /// Where visitors find it.
    pub host: HostName,
    /// The stem of its units, its journal identifier.
    pub tag: TargetTag,
    /// The user its units run as.
    pub user: UserName,
}

/// A kind of name that two targets must not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken<'a> {
    /// A hostname.
    Host(&'a str),
    /// A unit and journal tag.
    Tag(&'a str),
    /// A user.
    User(&'a str),
}

impl TargetNames {
    /// Chooses the names of `service` on `branch`, avoiding those that are `taken`.
    ///
    /// # Errors
    /// When project and base domain leave no room for a host name.
    pub fn choose(
        base_domain: &HostName,
        project: &ProjectName,
        branch: &BranchRef,
        slug: &BranchSlug,
        service: &ServiceName,
        taken: impl Fn(Taken<'_>) -> bool,
    ) -> Result<Self, InvalidName> {
        let digest = |digits| digest(project, branch, Some(service), digits);
        let host_of = |label: &str| format!("{label}.{project}.{base_domain}");
        let label =
            choose(&format!("{service}-{slug}"), LABEL_MAX, digest, |label| taken(Taken::Host(&host_of(label))));
        let joined = format!("kennel-{project}-{slug}-{service}");
        let tag = choose(&joined, 200, digest, |tag| taken(Taken::Tag(tag)));
        let user = choose(&joined, USER_MAX, digest, |user| taken(Taken::User(user)));
        Ok(Self { host: host_of(&label).parse()?, tag: tag.parse()?, user: user.parse()? })
    }

    /// Whether slug, tag and user are such as are chosen for `service` on `branch`, whatever was taken then.
    #[must_use]
    pub fn fit(
        project: &ProjectName,
        branch: &BranchRef,
        slug: &BranchSlug,
        service: &ServiceName,
        tag: &TargetTag,
        user: &UserName,
    ) -> bool {
        let of_branch = |digits| digest(project, branch, None, digits);
        let of_target = |digits| digest(project, branch, Some(service), digits);
        let joined = format!("kennel-{project}-{slug}-{service}");
        may_choose(slug.as_str(), &plain_slug(branch), NAME_MAX, of_branch)
            && may_choose(tag.as_str(), &joined, 200, of_target)
            && may_choose(user.as_str(), &joined, USER_MAX, of_target)
    }
}

impl TargetTag {
    /// The unit that runs `deployment`.
    #[must_use]
    pub fn unit(&self, deployment: DeploymentId) -> UnitName {
        UnitName(format!("{self}@{deployment}.service"))
    }
}

impl UnitName {
    /// The unit that fetches the commit of `build`.
    #[must_use]
    pub fn fetch(build: BuildId) -> Self {
        Self(format!("kennel-fetch-{build}.service"))
    }

    /// The unit that evaluates and builds `build`.
    #[must_use]
    pub fn build(build: BuildId) -> Self {
        Self(format!("kennel-build-{build}.service"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "example.com";

    fn names(project: &str, branch: &BranchRef, service: &str, taken: &BTreeSet<String>) -> TargetNames {
        let project: ProjectName = project.parse().unwrap();
        let slug = BranchSlug::choose(&project, branch, |_| false);
        let service = service.parse().unwrap();
        TargetNames::choose(&DOMAIN.parse().unwrap(), &project, branch, &slug, &service, |name| match name {
            Taken::Host(name) | Taken::Tag(name) | Taken::User(name) => taken.contains(name),
        })
        .unwrap()
    }

    fn head(name: &str) -> BranchRef {
        BranchRef::head(name).unwrap()
    }

    #[test]
    fn short_names_are_joined_as_they_are() {
        let names = names("shop", &head("main"), "api", &BTreeSet::new());
        assert_eq!(names.host.as_str(), "api-main.shop.example.com");
        assert_eq!(names.tag.as_str(), "kennel-shop-main-api");
        assert_eq!(names.user.as_str(), "kennel-shop-main-api");
        assert_eq!(names.tag.unit(DeploymentId(7)).as_str(), "kennel-shop-main-api@7.service");
    }

    #[test]
    fn slugs_are_lower_case_squeezed_and_trimmed() {
        let project: ProjectName = "shop".parse().unwrap();
        let slug = |branch: &str| BranchSlug::choose(&project, &head(branch), |_| false).to_string();
        assert_eq!(slug("Feature/Login__Form!"), "feature-login-form");
        assert_eq!(slug("x/-y"), "x-y");
        assert_eq!(BranchSlug::choose(&project, &BranchRef::pull(7.try_into().unwrap()), |_| false).as_str(), "pr-7");
        assert!(slug("日本").starts_with("b-"), "{}", slug("日本"));
    }

    #[test]
    fn branches_that_look_alike_get_different_slugs() {
        let project: ProjectName = "shop".parse().unwrap();
        let first = BranchSlug::choose(&project, &head("feature/x"), |_| false);
        let second = BranchSlug::choose(&project, &head("feature-x"), |slug| slug == first.as_str());
        assert_eq!(first.as_str(), "feature-x");
        assert!(second.as_str().starts_with("feature-x-") && second.as_str().len() == "feature-x-".len() + 6);
    }

    #[test]
    fn joined_names_that_would_meet_end_in_a_digest() {
        let first = names("a-b", &head("c"), "api", &BTreeSet::new());
        let taken = [first.host.to_string(), first.tag.to_string(), first.user.to_string()].into();
        let second = names("a", &head("b-c"), "api", &taken);
        assert_ne!(first.tag, second.tag);
        assert_ne!(first.user, second.user);
        assert_ne!(first.host, second.host);
    }

    #[test]
    fn names_of_something_else_do_not_fit() {
        let (branch, slug) = (head("main"), "main".parse().unwrap());
        let names = names("shop", &branch, "api", &BTreeSet::new());
        let fit = |project: &str, branch: &BranchRef, service: &str| {
            let (project, service) = (project.parse().unwrap(), service.parse().unwrap());
            TargetNames::fit(&project, branch, &slug, &service, &names.tag, &names.user)
        };
        assert!(fit("shop", &branch, "api"));
        assert!(!fit("bank", &branch, "api") && !fit("shop", &branch, "web") && !fit("shop", &head("topic"), "api"));
        let root: UserName = "root".parse().unwrap();
        let (project, service) = ("shop".parse().unwrap(), "api".parse().unwrap());
        assert!(!TargetNames::fit(&project, &branch, &slug, &service, &names.tag, &root));
    }

    #[test]
    fn a_branch_of_120_characters_fits_every_limit() {
        let names = names("shop", &head(&"long/".repeat(24)[..119]), "api", &BTreeSet::new());
        assert!(names.host.as_str().split('.').all(|label| label.len() <= LABEL_MAX));
        assert!(names.user.as_str().len() <= USER_MAX);
    }

    fn short_name() -> impl Strategy<Value = String> {
        "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
    }

    fn branch() -> impl Strategy<Value = BranchRef> {
        prop_oneof![
            "\\PC{1,120}".prop_filter_map("a branch name", |name| BranchRef::head(&name).ok()),
            "[a-c/-]{1,8}".prop_filter_map("a branch name", |name| BranchRef::head(&name).ok()),
            (1u32..).prop_map(|number| BranchRef::pull(number.try_into().unwrap())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn no_two_targets_ever_share_a_name(
            targets in proptest::collection::btree_set(("[ab-]{1,4}", branch(), "[ab-]{1,4}"), 1..40)
        ) {
            let mut taken = BTreeSet::new();
            let mut slugs = BTreeSet::new();
            for (project, branch, service) in targets {
                let (Ok(project), Ok(service)) = (project.parse::<ProjectName>(), service.parse()) else { continue };
                let slug = BranchSlug::choose(&project, &branch, |slug| slugs.contains(&(project.clone(), slug.to_owned())));
                let names = TargetNames::choose(&DOMAIN.parse().unwrap(), &project, &branch, &slug, &service, |name| {
                    match name {
                        Taken::Host(name) => taken.contains(&format!("host {name}")),
                        Taken::Tag(name) => taken.contains(&format!("tag {name}")),
                        Taken::User(name) => taken.contains(&format!("user {name}")),
                    }
                }).unwrap();
                prop_assert!(TargetNames::fit(&project, &branch, &slug, &service, &names.tag, &names.user));
                slugs.insert((project, slug.to_string()));
                let host_is_new = taken.insert(format!("host {}", names.host));
                prop_assert!(host_is_new);
                let tag_is_new = taken.insert(format!("tag {}", names.tag));
                prop_assert!(tag_is_new);
                let user_is_new = taken.insert(format!("user {}", names.user));
                prop_assert!(user_is_new);
            }
        }

        #[test]
        fn every_name_is_within_its_limits_and_stable(project in short_name(), branch in branch(), service in short_name()) {
            let first = names(&project, &branch, &service, &BTreeSet::new());
            prop_assert_eq!(&first, &names(&project, &branch, &service, &BTreeSet::new()));
            prop_assert!(first.user.as_str().len() <= USER_MAX);
            prop_assert!(first.host.as_str().split('.').all(|label| label.len() <= LABEL_MAX));
            prop_assert!(first.tag.unit(DeploymentId(i64::MAX)).as_str().parse::<UnitName>().is_ok());
        }
    }
}
