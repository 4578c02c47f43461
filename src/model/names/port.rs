//! Ports that deployments listen on.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidName;
use super::checked::checked_number;

checked_number! {
    /// A deployment's port: 18000 to 19999.
    Port(18000..=19999), "port", "is not between 18000 and 19999"
}

impl Port {
    /// The lowest port kennel hands out.
    pub const FIRST: u16 = 18000;
    /// The highest port kennel hands out.
    pub const LAST: u16 = 19999;
}
