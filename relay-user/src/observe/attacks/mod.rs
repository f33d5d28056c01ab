//! The observers, each by the number of [`super::finding::Attack`].

pub mod cover;
