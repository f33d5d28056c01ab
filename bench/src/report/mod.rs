//! What people and machines get to see of a session.

pub mod html;
pub mod json;
pub mod percentiles;
mod plot;
pub mod table;
