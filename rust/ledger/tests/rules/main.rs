//! The ledger's rules (R1–R17 of the specification), one test or more for each; the name says which.

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod bounds;
mod clocks;
mod keys;
mod limits;
mod nested;
mod settlement;
mod slices;
mod threads;
