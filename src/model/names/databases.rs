//! What a branch's databases are called on the servers: nothing else there is ever touched.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::checked::{checked_number, checked_text};
use super::{BranchSlug, InvalidName, ProjectName};

/// What every name on a server begins with.
const USER_PREFIX: &str = "kennel-";
const DATABASE_PREFIX: &str = "kennel_";
/// What the name of a database ends in once its branch is gone.
const RENAMED_SUFFIX: &str = "_trash";
/// How many hex digits end a database's name.
const DIGITS: usize = 12;
/// How much of the project's and of the branch's name a database's name holds.
const PART_MAX: usize = 18;
/// The longest name of which PostgreSQL cuts nothing off, in bytes (`NAMEDATALEN` - 1).
const POSTGRES_MAX: usize = 63;

checked_number! {
    /// A Valkey database number: never 0, which everybody can reach.
    ValkeyDb(1..=u16::MAX), "Valkey database number", "is not greater than 0"
}

impl ValkeyDb {
    /// The ACL user who may use this number. One user a number: nobody else's name can be the same.
    #[must_use]
    pub fn user(self) -> String {
        format!("{USER_PREFIX}{self}")
    }

    /// The number whose user has this name; `None` when the user is not one of kennel's.
    #[must_use]
    pub fn of_user(name: &str) -> Option<Self> {
        let db: Self = name.strip_prefix(USER_PREFIX)?.parse::<u16>().ok()?.try_into().ok()?;
        (db.user() == name).then_some(db)
    }
}

checked_text! {
    /// A PostgreSQL database of kennel's, and its role: `kennel_<project>_<branch>_<12 hex digits>`, of
    /// `[a-z0-9_]`, at most 57 bytes, so that there is room for the ending it gets when its branch is gone.
    DatabaseName, "database name", |text| {
        let digits = text.strip_prefix(DATABASE_PREFIX).and_then(|rest| rest.rsplit_once('_')).map(|(_, digits)| digits);
        if text.len() > POSTGRES_MAX - RENAMED_SUFFIX.len() {
            Err("is longer than 57 bytes")
        } else if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            Err("holds something else than `[a-z0-9_]`")
        } else if digits.is_some_and(|d| d.len() == DIGITS && d.bytes().all(|b| b.is_ascii_hexdigit())) {
            Ok(())
        } else {
            Err("is not `kennel_`, a name and 12 hex digits")
        }
    }
}

impl DatabaseName {
    /// A name that tells people whose it is. `number` makes it one of its own: a branch that comes back must not
    /// meet the database it had before.
    #[must_use]
    pub fn choose(project: &ProjectName, slug: &BranchSlug, number: u64) -> Self {
        let part = |text: &str| text.get(..PART_MAX.min(text.len())).unwrap_or_default().replace('-', "_");
        let (project, slug) = (part(project.as_str()), part(slug.as_str()));
        Self(format!("{DATABASE_PREFIX}{project}_{slug}_{:012x}", number & 0xffff_ffff_ffff))
    }

    /// What the database is called once its branch is gone.
    #[must_use]
    pub fn renamed(&self) -> String {
        format!("{self}{RENAMED_SUFFIX}")
    }

    /// The name behind that of a database on the server, renamed or not; `None` when it is not one of kennel's.
    #[must_use]
    pub fn of_database(name: &str) -> Option<Self> {
        name.strip_suffix(RENAMED_SUFFIX).unwrap_or(name).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("kennel-3", Some(3))]
    #[case("kennel-65535", Some(65535))]
    #[case("kennel-0", None)]
    #[case("kennel-03", None)]
    #[case("kennel-+3", None)]
    #[case("kennel-65536", None)]
    #[case("kennel-admin", None)]
    #[case("kennel", None)]
    #[case("default", None)]
    fn only_users_that_kennel_makes_are_its_own(#[case] name: &str, #[case] number: Option<u16>) {
        assert_eq!(ValkeyDb::of_user(name).map(ValkeyDb::get), number);
    }

    #[rstest]
    #[case("kennel_hello_main_0123456789ab", true)]
    #[case("kennel_hello_main_0123456789ab_trash", true)]
    #[case("kennel_hello_main_0123456789ab_trash_trash", false)]
    #[case("kennel_admin", false)]
    #[case("kennel_0123456789ab", false)]
    #[case("kennel_hello_main_0123456789AB", false)]
    #[case("kennel_hello\"; drop_0123456789ab", false)]
    #[case("hello_main_0123456789ab", false)]
    #[case("kennel", false)]
    fn only_databases_that_kennel_makes_are_its_own(#[case] name: &str, #[case] own: bool) {
        assert_eq!(DatabaseName::of_database(name).is_some(), own);
    }

    #[test]
    fn a_database_tells_whose_it_is() {
        let name = DatabaseName::choose(&"hello".parse().unwrap(), &"feature-x".parse().unwrap(), 0x019a_1b2c_3d4e);
        assert_eq!(name.as_str(), "kennel_hello_feature_x_019a1b2c3d4e");
        assert_eq!(name.renamed(), "kennel_hello_feature_x_019a1b2c3d4e_trash");
    }

    proptest! {
        #[test]
        fn a_name_is_short_its_own_and_found_again(
            project in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", slug in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", number: u64
        ) {
            let name = DatabaseName::choose(&project.parse().unwrap(), &slug.parse().unwrap(), number);
            prop_assert!(name.renamed().len() <= POSTGRES_MAX);
            prop_assert_eq!(DatabaseName::of_database(name.as_str()), Some(name.clone()));
            prop_assert_eq!(DatabaseName::of_database(&name.renamed()), Some(name));
        }
    }
}
