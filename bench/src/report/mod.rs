//! What people and machines get to see of a session.

pub mod html;
pub mod json;
pub mod percentiles;
pub(crate) mod plot;
pub mod table;
