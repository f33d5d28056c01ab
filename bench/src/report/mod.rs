//! What people and machines get to see of a session.

pub mod json;
pub mod table;
