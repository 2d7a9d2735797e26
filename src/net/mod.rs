//! What every request to somebody else's machine has in common.
//!
//! [`guard`] says which addresses may be connected to.

pub mod guard;
