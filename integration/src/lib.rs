//! The harness of ckrun's end-to-end tests.

pub mod clients;
