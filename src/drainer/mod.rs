//! The drainer: reads lanes, decides what runs next, runs it, reports the outcome.

pub mod handlers;
