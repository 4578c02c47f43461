//! Verifies a forge's delivery and says what it asks for.
//!
//! The order is: headers, signature over the raw bytes, and only then the payload.

pub mod headers;
pub mod payload;
pub mod signature;

mod json;
