//! What is to be done so that servers and rows are equal: pure functions of both.

use std::collections::BTreeSet;

use crate::model::{BranchRef, DatabaseName, DatabaseState, ProjectName, ValkeyDb};
use crate::store::{PostgresDatabase, ValkeyNumber};

/// Whose a database is.
type Owner = (ProjectName, BranchRef);

/// One thing to do about a Valkey number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NumberAction {
    /// Set the branch's user up.
    Ensure(ValkeyDb, Owner),
    /// Take over a number whose user no row names: it is given back next time.
    Adopt(ValkeyDb),
    /// Remove the user, empty the number and free it.
    GiveBack(ValkeyDb),
}

/// One thing to do about a PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DatabaseAction {
    /// Set role and database up.
    Ensure(DatabaseName, Owner),
    /// Take over what no row names: it is renamed next time.
    Adopt(DatabaseName),
    /// Lock it and give it its last name.
    Rename(DatabaseName),
    /// Drop database and role.
    Drop(DatabaseName),
}

/// Plans for Valkey, given the numbers that have a user of kennel's.
pub(super) fn plan_numbers(rows: &[ValkeyNumber], users: &BTreeSet<ValkeyDb>) -> Vec<NumberAction> {
    let ours = rows.iter().map(|row| match &row.owner {
        Some(owner) => NumberAction::Ensure(row.number, owner.clone()),
        None => NumberAction::GiveBack(row.number),
    });
    let is_named = |number: &ValkeyDb| rows.iter().any(|row| row.number == *number);
    let orphans = users.iter().filter(|number| !is_named(number)).copied().map(NumberAction::Adopt);
    ours.chain(orphans).collect()
}

/// Plans for PostgreSQL, given what is there under kennel's names and what was renamed long enough ago.
pub(super) fn plan_databases(
    rows: &[PostgresDatabase],
    own: &BTreeSet<DatabaseName>,
    expired: &[DatabaseName],
) -> Vec<DatabaseAction> {
    let ours = rows.iter().filter_map(|row| {
        let name = row.name.clone();
        match (row.state, &row.owner) {
            (DatabaseState::InUse, owner) => owner.clone().map(|owner| DatabaseAction::Ensure(name, owner)),
            (DatabaseState::Ended, _) => Some(DatabaseAction::Rename(name)),
            (DatabaseState::Renamed, _) => expired.contains(&name).then_some(DatabaseAction::Drop(name)),
        }
    });
    let is_named = |name: &DatabaseName| rows.iter().any(|row| row.name == *name);
    let orphans = own.iter().filter(|name| !is_named(name)).cloned().map(DatabaseAction::Adopt);
    ours.chain(orphans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u16) -> ValkeyDb {
        n.try_into().unwrap()
    }

    fn name(branch: &str) -> DatabaseName {
        format!("kennel_hello_{branch}_0123456789ab").parse().unwrap()
    }

    fn owner(branch: &str) -> Owner {
        ("hello".parse().unwrap(), format!("heads/{branch}").parse().unwrap())
    }

    #[test]
    fn users_are_set_up_again_and_numbers_of_ended_branches_given_back() {
        let rows = [
            ValkeyNumber { number: number(1), owner: Some(owner("main")) },
            ValkeyNumber { number: number(2), owner: None },
        ];
        // User 1 is gone, as after a restart; nobody knows of 7.
        assert_eq!(
            plan_numbers(&rows, &[number(2), number(7)].into()),
            [
                NumberAction::Ensure(number(1), owner("main")),
                NumberAction::GiveBack(number(2)),
                NumberAction::Adopt(number(7)),
            ]
        );
        assert_eq!(plan_numbers(&[], &BTreeSet::new()), []);
    }

    #[test]
    fn a_database_is_renamed_when_its_branch_is_gone_and_dropped_when_its_time_is_up() {
        let row = |branch: &str, owner: Option<Owner>, state| PostgresDatabase { name: name(branch), owner, state };
        let rows = [
            row("main", Some(owner("main")), DatabaseState::InUse),
            row("topic", None, DatabaseState::Ended),
            row("young", None, DatabaseState::Renamed),
            row("old", None, DatabaseState::Renamed),
        ];
        let own = ["main", "topic", "young", "old", "lost"].map(name).into();
        assert_eq!(
            plan_databases(&rows, &own, &[name("old")]),
            [
                DatabaseAction::Ensure(name("main"), owner("main")),
                DatabaseAction::Rename(name("topic")),
                DatabaseAction::Drop(name("old")),
                DatabaseAction::Adopt(name("lost")),
            ]
        );
    }
}
