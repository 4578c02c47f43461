//! A branch's PostgreSQL database, from its first deployment to its end.

use super::words;

words! {
    /// Where a PostgreSQL database of a branch stands.
    DatabaseState {
        /// Its branch has it.
        InUse = "in_use",
        /// Its branch is gone, and the database is still to be locked and renamed.
        Ended = "ended",
        /// Nobody can log in; it is dropped when its time is up.
        Renamed = "renamed",
    }
}
