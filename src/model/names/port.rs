//! Ports that deployments listen on.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidName;

/// A deployment's port: 18000 to 19999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Port(u16);

impl Port {
    /// The lowest port kennel hands out.
    pub const FIRST: u16 = 18000;
    /// The highest port kennel hands out.
    pub const LAST: u16 = 19999;

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Port {
    type Error = InvalidName;

    fn try_from(port: u16) -> Result<Self, InvalidName> {
        if (Self::FIRST..=Self::LAST).contains(&port) {
            Ok(Self(port))
        } else {
            Err(InvalidName::new("port", &port.to_string(), "is not between 18000 and 19999"))
        }
    }
}

impl From<Port> for u16 {
    fn from(port: Port) -> u16 {
        port.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl sqlx::Type<sqlx::Sqlite> for Port {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <u16 as sqlx::Type<sqlx::Sqlite>>::type_info()
    }

    fn compatible(info: &sqlx::sqlite::SqliteTypeInfo) -> bool {
        <u16 as sqlx::Type<sqlx::Sqlite>>::compatible(info)
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Sqlite> for Port {
    fn decode(value: sqlx::sqlite::SqliteValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(<u16 as sqlx::Decode<sqlx::Sqlite>>::decode(value)?.try_into()?)
    }
}

impl sqlx::Encode<'_, sqlx::Sqlite> for Port {
    fn encode_by_ref(
        &self,
        buf: &mut sqlx::sqlite::SqliteArgumentsBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        <u16 as sqlx::Encode<sqlx::Sqlite>>::encode_by_ref(&self.0, buf)
    }
}
