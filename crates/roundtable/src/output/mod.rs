//! How results are shown: tables for people, JSON, Prometheus' text format.

pub mod file;
pub mod human;
pub mod prometheus;
pub mod table;
