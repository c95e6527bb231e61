//! Tiny guests, built from source by `build.rs` and embedded.

#[path = "../runtime/mailbox.rs"]
pub mod mailbox;
