//! The ledger's rules (R1–R17 of the specification), one test or more for each; the name says which.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::cast_possible_wrap, reason = "small numbers of a test")]

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod bounds;
mod channels;
mod clocks;
mod honest;
mod journal;
mod keys;
mod leases;
mod limits;
mod nested;
mod rollover;
mod runaways;
mod settlement;
mod slices;
mod spending;
mod threads;
mod topups;
mod velocity;
mod views;
